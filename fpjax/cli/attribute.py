"""Says who made each image file: a registered user, or nobody we know and why.

  fpjax attribute IMAGE [IMAGE ...] [--registry FILE] [--scheme NAME_OR_FOLDER] [--json FILE]

Images that cannot be read are reported and the others answered. Exit code 0 means that every image
was answered, whoever made it; 1 that some could not be; 2 a wrong call.
"""

from __future__ import annotations

import sys

from absl import flags

from fpjax.cli import common

_BATCH = 8


def define_flags() -> None:
    """Flags of the command."""
    common.define_scheme_flags()
    common.define_registry_flag()
    flags.DEFINE_string("json", None, "File to write the answers to; - for standard output.")
    flags.DEFINE_float(
        "false_positive_rate",
        1e-6,
        "Chance that an image without a key is attributed to any registered user.",
        lower_bound=0,
        upper_bound=1,
    )


def answer(path: str, verdict=None, error: str | None = None, key: str | None = None) -> dict:
    """One image's entry of the JSON output."""
    entry: dict = {"image": path}
    if error is not None:
        return {**entry, "status": "error", "error": error}
    return {
        **entry,
        "status": "attributed" if verdict.user is not None else "not attributed",
        "user": verdict.user,
        "reason": str(verdict.reason),
        "matching_bits": verdict.matching_bits,
        "key_length": verdict.key_length,
        "p_value": verdict.p_value,
        "noise_ratio": verdict.noise_ratio,
        "key": key,
    }


def sentence(verdict) -> str:
    """A verdict for people."""
    evidence = (
        f"{verdict.matching_bits}/{verdict.key_length} bits, p = {verdict.p_value:.1e}, "
        f"residual {verdict.noise_ratio:.1f}"
    )
    if verdict.user is not None:
        return f"{verdict.user} ({evidence})"
    return f"not attributed: {verdict.reason} ({evidence})"


def main(arguments: list[str]) -> int:
    """Runs the command."""
    if not arguments:
        raise common.UsageError("name the images: fpjax attribute IMAGE [IMAGE ...]")
    import numpy as np

    from fpjax.attribution.decision import attribute
    from fpjax.attribution.registry import Registry
    from fpjax.data.files import ImageError, load_image
    from fpjax.fingerprint.keys import to_hex

    values = flags.FLAGS
    if values.false_positive_rate in (0, 1):
        raise common.UsageError("--false_positive_rate must be between 0 and 1")
    common.use_compilation_cache()
    scheme = common.open_scheme()
    shape = (scheme.generator.resolution, scheme.generator.resolution, 3)
    progress = common.Progress()
    answers: dict[str, dict] = {}
    readable: list[tuple[str, np.ndarray]] = []
    to_stdout = values.json == "-"
    speak = (lambda *words: None) if to_stdout else print
    with Registry.open(values.registry, scheme_id=scheme.id) as registry:
        for path in dict.fromkeys(arguments):
            try:
                readable.append((path, load_image(path, shape)))
            except ImageError as error:
                progress.finish()
                print(f"fpjax: {error}", file=sys.stderr)
                answers[path] = answer(path, error=str(error))
        code = common.EXIT_FAILED if answers else common.EXIT_OK
        try:
            for first in range(0, len(readable), _BATCH):
                batch = readable[first : first + _BATCH]
                found = attribute(
                    scheme,
                    np.stack([image for _, image in batch]),
                    registry,
                    false_positive_rate=values.false_positive_rate,
                    progress=lambda done, _, first=first: progress(
                        "attributing", first + done, len(readable)
                    ),
                )
                progress.finish()
                for (path, _), verdict, key in zip(batch, found.verdicts, found.keys, strict=True):
                    answers[path] = answer(path, verdict, key=to_hex(key))
                    speak(f"{path}: {sentence(verdict)}")
        except KeyboardInterrupt:
            progress.finish()
            print(f"fpjax: interrupted after {len(answers)} images", file=sys.stderr)
            code = common.EXIT_INTERRUPTED
    if values.json:
        ordered = [answers[path] for path in dict.fromkeys(arguments) if path in answers]
        common.write_json(values.json, {"scheme": scheme.id, "images": ordered})
    return code

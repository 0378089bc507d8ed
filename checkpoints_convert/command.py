"""The command `fpjax-convert FILE OUT_DIR`: published weights to a folder that fpjax opens."""

from __future__ import annotations

import argparse
import io
import math
import os
import sys
from pathlib import Path

from checkpoints_convert.printable import printable

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130

SHOWN = 10  # names in one list; --dry-run shows all
OPTIONS = (
    "resolution",
    "num_head_channels",
    "num_heads",
    "new_attention_order",
    "scale_factor",
    "shift_factor",
    "mapping_lr_multiplier",
)

EPILOG = """\
examples:
  fpjax-convert stylegan2-ffhq-config-f.pt ffhq1024
  fpjax-convert ffhq.pkl ffhq --dry-run
  fpjax-convert model.ckpt ldm-ffhq256 --config config.yaml
  fpjax-convert taef2_decoder.pth taef2 --encoder taef2_encoder.pth

Nothing in FILE is run, and PyTorch is not needed. Open the folder with fpjax.load_generator,
load_prior or load_perceptual.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        self.exit(EXIT_USAGE, f"{self.prog}: {printable(message)}; see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    made = _Parser(
        prog="fpjax-convert",
        description="Converts published weights (StyleGAN2, latent diffusion, tiny autoencoders,\n"
        "perceptual networks) to a folder that fpjax opens.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("file", type=Path, metavar="FILE", help="checkpoint, or a diffusers folder")
    made.add_argument("out_dir", type=Path, metavar="OUT_DIR", help="new folder to write")
    made.add_argument(
        "--dry-run",
        action="store_true",
        help="print the plan, the output's size and whole lists, and write nothing",
    )
    made.add_argument(
        "--verify",
        action="store_true",
        help="compare what was written with PyTorch's reading of FILE, where PyTorch 2.10 or later "
        "is installed",
    )
    made.add_argument(
        "--sha256",
        type=_sha256,
        metavar="HEX",
        help="FILE's SHA-256 as its publisher states it, or at least its first 8 digits",
    )
    made.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        default="float32",
        help="what parameters are stored in (default: float32)",
    )
    made.add_argument(
        "--format",
        choices=("safetensors", "orbax"),
        default="safetensors",
        help="how parameters are stored (default: safetensors)",
    )
    made.add_argument(
        "--weights",
        choices=("ema", "raw"),
        help="averaged weights (g_ema, G_ema, Gs, model_ema) or raw ones (g, G), where FILE has "
        "both (default: averaged ones)",
    )
    beside = made.add_argument_group("files that belong to FILE")
    beside.add_argument(
        "--config", type=Path, metavar="FILE", help="config.yaml (CompVis) or config.json"
    )
    beside.add_argument("--encoder", type=Path, metavar="FILE", help="encoder of a TAESD decoder")
    beside.add_argument(
        "--heads", type=Path, metavar="FILE", help="LPIPS heads for a VGG16 or AlexNet"
    )
    open_ = made.add_argument_group(
        "what weights cannot show", "A flag that has no meaning for FILE is an error."
    )
    open_.add_argument(
        "--resolution", type=_positive, metavar="N", help="side of an image (default: 256)"
    )
    open_.add_argument(
        "--num-head-channels",
        type=_positive,
        metavar="N",
        help="channels of a U-Net attention head (default: 32, as published)",
    )
    open_.add_argument(
        "--num-heads", type=_positive, metavar="N", help="U-Net attention heads, instead"
    )
    open_.add_argument(
        "--new-attention-order",
        action="store_true",
        default=None,
        help="the U-Net's fused projection has all queries first",
    )
    open_.add_argument(
        "--scale-factor",
        type=_positive_number,
        metavar="X",
        help="of latents, where FILE has none",
    )
    open_.add_argument(
        "--shift-factor", type=_number, metavar="X", help="taken off latents before they are scaled"
    )
    open_.add_argument(
        "--mapping-lr-multiplier",
        type=_positive_number,
        metavar="X",
        help="of the StyleGAN2 mapping network (default: what FILE says, else 0.01)",
    )
    return made


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


def _positive_number(text: str) -> float:
    value = _number(text)
    if value <= 0:
        raise ValueError
    return value


def _sha256(text: str) -> str:
    if not (8 <= len(text) <= 64 and set(text.lower()) <= set("0123456789abcdef")):
        raise ValueError
    return text.lower()


def run(arguments: list[str]) -> int:
    """Runs one command line (without the program's name) and returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot show is no error
            stream.reconfigure(errors="backslashreplace")
    try:
        flags = parser().parse_args(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        code = _run(flags)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader of a pipe is gone; there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except (ValueError, OSError, MemoryError, ModuleNotFoundError) as error:
        # ValueError is the base of all errors of misuse, and of those about files.
        code = _fail(str(error).split("\n")[0], EXIT_FAILED)
        _print_list(getattr(error, "problems", ()), whole=flags.dry_run, stream=sys.stderr)
        return code


def _run(flags: argparse.Namespace) -> int:
    from checkpoints_convert.convert import check_sha256, convert_file
    from checkpoints_convert.detect import recognise
    from checkpoints_convert.request import Request
    from fpjax.progress import Display

    said = {name: getattr(flags, name) for name in OPTIONS}
    options = {name: value for name, value in said.items() if value is not None}
    request = Request(flags.config, flags.encoder, flags.heads, flags.weights, options)
    if flags.dry_run:
        source = recognise(flags.file, request)
        check_sha256(source, flags.sha256)
        _print_source(source, flags.dtype, plan=True)
        return EXIT_OK
    progress = Display()
    written = convert_file(
        flags.file,
        flags.out_dir,
        request,
        dtype=flags.dtype,
        file_format=flags.format,
        verify=flags.verify,
        sha256=flags.sha256,
        progress=progress,
    )
    progress.finish()
    _print_source(written.source, flags.dtype, plan=False)
    if flags.sha256 is None:
        _print_unchecked(written.source)
    for name in written.nonfinite:
        print(f"fpjax-convert: warning: NaN or infinity in {printable(name)}", file=sys.stderr)
    if written.verified is not None:
        print(f"verified: {written.verified} parameters equal PyTorch's reading, bit by bit")
    elif written.not_verified:
        print(f"fpjax-convert: not verified: {printable(written.not_verified)}", file=sys.stderr)
    print(f"wrote {printable(flags.out_dir)}")
    return EXIT_OK


def _print_source(source, dtype: str, *, plan: bool) -> None:
    from checkpoints_convert.output import stored_bytes

    print(f"{source.kind}")
    for part in source.parts:
        place = f"{part.folder}: " if part.folder else ""
        size = stored_bytes(part.plan, dtype) / (1 << 20)
        count = len(part.plan.steps)
        print(f"{place}{part.architecture}, {count} parameters, {size:,.1f} MiB in {dtype}")
    for note in source.notes:
        print(f"note: {printable(note)}")
    if plan:
        for part in source.parts:
            start = f"{part.folder}/" if part.folder else ""
            for step in part.plan.steps:
                line = f"{step.source} {step.source_shape} -> {start}{step.target} {step.shape}"
                print(printable(f"{line} [{step.transform}]"))
    reasons: dict[str, list[str]] = {}
    for name, reason in source.ignored:
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        tensors = "1 tensor" if len(names) == 1 else f"{len(names)} tensors"
        print(printable(f"left out: {tensors}: {reason}"))
        _print_list(names, whole=plan, stream=sys.stdout)


def _print_unchecked(source) -> None:
    """Files in which a damaged download could not show, with what to compare."""
    for file in source.files:
        if not file.checksums:
            print(
                f"note: {printable(Path(file.path).name)} has no checksums inside; its SHA-256 is "
                f"{file.sha256()}: compare it with the publisher's, or give that as --sha256"
            )


def _print_list(lines, *, whole: bool, stream) -> None:
    """Lines below a heading; not more than ten of them, unless the whole list is asked for."""
    shown = lines if whole else lines[:SHOWN]
    for line in shown:
        print(f"  {printable(line)}", file=stream)
    if len(lines) > len(shown):
        print(f"  ... and {len(lines) - len(shown)} more; --dry-run lists all", file=stream)


def _fail(error: object, code: int) -> int:
    print(f"fpjax-convert: {printable(error)}", file=sys.stderr)
    return code


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()

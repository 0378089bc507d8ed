"""Makes images that carry a registered user's key, as 8-bit PNG files.

fpjax generate USER [--num 4] [--out FOLDER] [--registry FILE] [--scheme NAME_OR_FOLDER]
"""

from __future__ import annotations

import secrets
from pathlib import Path

from absl import flags

from fpjax.cli import common

_BATCH = 64


def define_flags() -> None:
    """Flags of the command."""
    common.define_scheme_flags()
    common.define_registry_flag()
    flags.DEFINE_integer("num", 4, "Images to make.", lower_bound=1)
    flags.DEFINE_string("out", "fpjax-images", "Folder to write them to.")
    flags.DEFINE_integer(
        "seed", None, "Seed of the latents; by default a fresh random one.", 0, 2**32 - 1
    )
    flags.DEFINE_enum(
        "alpha",
        "projected",
        ["projected", "sampled"],
        "Latents: projected natural ones, or drawn from a normal distribution as published.",
    )


def main(arguments: list[str]) -> int:
    """Runs the command."""
    if len(arguments) != 1:
        raise common.UsageError("name one user: fpjax generate USER")
    import jax
    import numpy as np

    from fpjax.attribution.registry import Registry
    from fpjax.data.files import save_image, to_uint8
    from fpjax.fingerprint.scheme import generate

    values = flags.FLAGS
    common.use_compilation_cache()
    scheme = common.open_scheme()
    with Registry.open(values.registry, scheme_id=scheme.id) as registry:
        key = registry.key_of(arguments[0])
    seed = secrets.randbits(32) if values.seed is None else values.seed
    out = Path(values.out)
    out.mkdir(parents=True, exist_ok=True)
    targets = [out / f"{seed}-{i:04d}.png" for i in range(values.num)]
    clash = [path for path in targets if path.exists()]
    if clash:
        raise common.CommandError(f"{clash[0]} exists already: choose another --out or --seed")
    progress = common.Progress()
    for first in range(0, values.num, _BATCH):
        batch = targets[first : first + _BATCH]
        keys = np.repeat(key[None], len(batch), axis=0)
        prng_key = jax.random.fold_in(jax.random.key(seed), first)
        images = generate(scheme, prng_key, keys, alpha=values.alpha).images
        for path, image in zip(batch, to_uint8(np.asarray(images)), strict=True):
            save_image(path, image)
            print(path)
        progress("generating", first + len(batch), values.num)
    progress.finish()
    return common.EXIT_OK

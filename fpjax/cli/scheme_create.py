"""Makes a scheme for a generator: basis, fingerprint directions, strength, and its calibration.

  fpjax scheme create --out FOLDER [--generator NAME_OR_FOLDER] [--strength 0.7] ...

Calibration fits the linear start of the inversion and inverts keyless images, to learn how their
bits fall: two to three seconds for each on two CPU cores with the bundled generator.
"""

from __future__ import annotations

from absl import flags

from fpjax.cli.common import (
    DEFAULT_GENERATOR,
    EXIT_OK,
    Progress,
    UsageError,
    use_compilation_cache,
)


def define_flags() -> None:
    """Flags of the command."""
    flags.DEFINE_string("generator", DEFAULT_GENERATOR, "Bundled name or folder of a generator.")
    flags.DEFINE_string("out", None, "Folder to make; it must not exist.")
    flags.DEFINE_integer("key_length", 64, "Bits of a key.", lower_bound=1)
    flags.DEFINE_integer(
        "shift", None, "First fingerprint component; by default the key takes the last ones."
    )
    flags.DEFINE_float("strength", 1.0, "Size of the shift, in latent units.", lower_bound=0)
    flags.DEFINE_enum("levels", "binary", ["binary", "antipodal"], "Levels of a bit.")
    flags.DEFINE_enum("noise", "const", ["const", "none"], "Noise mode of the generator.")
    flags.DEFINE_integer("num_samples", 10_000, "Latents the basis is fitted on.", lower_bound=2)
    flags.DEFINE_integer(
        "num_start_images", 12_000, "Images the linear start is fitted on.", lower_bound=20
    )
    flags.DEFINE_integer(
        "num_null_images", 256, "Keyless images of each of two kinds.", lower_bound=2
    )
    flags.DEFINE_integer("seed", 0, "Seed of all draws.", 0, 2**32 - 1)


def main(arguments: list[str]) -> int:
    """Runs the command."""
    if arguments:
        raise UsageError(f"scheme create takes flags only, not {arguments[0]!r}")
    import os

    import jax

    from fpjax.attribution.calibration import calibrate
    from fpjax.fingerprint.basis import fit_basis
    from fpjax.fingerprint.scheme import Scheme
    from fpjax.models.generator import load_generator

    values = flags.FLAGS
    if not values.out:
        raise UsageError("say where the scheme goes: --out FOLDER")
    if os.path.exists(values.out):
        raise UsageError(f"{values.out} exists already: choose another name or remove it")
    use_compilation_cache()
    generator = load_generator(values.generator)
    key_basis, key_calibration = jax.random.split(jax.random.key(values.seed))
    basis = fit_basis(generator, key_basis, values.num_samples)
    scheme = Scheme.create(
        generator,
        basis,
        values.key_length,
        values.shift,
        values.strength,
        values.levels,
        values.noise,
    )
    progress = Progress()
    scheme = calibrate(
        scheme,
        key_calibration,
        num_start_images=values.num_start_images,
        num_null_images=values.num_null_images,
        progress=progress,
    )
    progress.finish()
    scheme.save(values.out)
    notes = scheme.notes["calibration"]
    print(f"wrote {values.out}: scheme {scheme.id[:12]} for {generator.name}")
    print(
        f"residuals: the generator's images up to {notes['natural_noise_ratio_max']:.2f} times "
        f"rounding noise, others from {notes['foreign_noise_ratio_min']:.2f}"
    )
    return EXIT_OK

"""Fits the principal directions of a generator's latents and shows how much they vary.

  fpjax basis [--generator NAME_OR_FOLDER] [--num_samples 10000] [--out basis.npz]

A scheme has its own basis and never refits it; this command is for choosing where keys go.
"""

from __future__ import annotations

import io

import numpy as np
from absl import flags

from fpjax.cli.common import DEFAULT_GENERATOR, EXIT_OK, UsageError, use_compilation_cache


def define_flags() -> None:
    """Flags of the command."""
    flags.DEFINE_string("generator", DEFAULT_GENERATOR, "Bundled name or folder of a generator.")
    flags.DEFINE_integer("num_samples", 10_000, "Latents to fit on.", lower_bound=2)
    flags.DEFINE_integer("seed", 0, "Seed of the latents.", 0, 2**32 - 1)
    flags.DEFINE_string("out", None, "File to write mean, components and std to (.npz).")


def main(arguments: list[str]) -> int:
    """Runs the command."""
    if arguments:
        raise UsageError(f"basis takes flags only, not {arguments[0]!r}")
    import jax

    from fpjax.data.atomic import atomic_write
    from fpjax.fingerprint.basis import fit_basis
    from fpjax.models.generator import load_generator

    use_compilation_cache()
    values = flags.FLAGS
    generator = load_generator(values.generator)
    basis = fit_basis(generator, jax.random.key(values.seed), values.num_samples)
    share = np.cumsum(basis.std.astype(np.float64) ** 2)
    share /= share[-1]
    print(f"{len(basis)} components of {basis.dimension}-d latents, {basis.num_samples} samples")
    print("component   std   variance up to here")
    shown = sorted({0, 1, 3, 7, 15, 31, 63, 127, 255, 447, len(basis) - 1})
    for i in (i for i in shown if i < len(basis)):
        print(f"{i:9d} {basis.std[i]:6.3f} {100 * share[i]:8.2f} %")
    if values.out:
        buffer = io.BytesIO()
        np.savez(buffer, mean=basis.mean, components=basis.components, std=basis.std)
        with atomic_write(values.out) as file:
            file.write(buffer.getvalue())
        print(f"wrote {values.out}")
    return EXIT_OK

"""Fits directions of a generator's latents and shows how much natural images vary along them.

  fpjax basis [--generator GENERATOR] [--metric image] [--out basis.npz]

A scheme has its own basis and never refits it; this command is for choosing where keys go.
"""

from __future__ import annotations

import argparse
import io
from typing import Any

from fpjax.cli import common

NUM_PROBES = 512
"""`fpjax.fingerprint.grid_metric.NUM_PROBES`, which is not imported for help."""


def add_basis_flags(parser: common.Parser) -> None:
    """`--metric`, `--num_samples`, `--num_jacobians` and `--num_probes`."""
    parser.flags.add_argument(
        "--metric",
        choices=("image", "latent"),
        default="image",
        help="image: directions ordered by how much natural images vary along them for the change "
        "they cost. latent: principal components, as published. Default: %(default)s.",
    )
    parser.flags.add_argument(
        "--num_samples",
        metavar="N",
        type=common.whole(2),
        default=10_000,
        help="Latents that directions are fitted on. Default: %(default)s.",
    )
    parser.flags.add_argument(
        "--num_jacobians",
        metavar="N",
        type=common.whole(1),
        help="Latents that the image metric is averaged over: the more, the fewer bits are wrong. "
        "Default: 256, and 64 for pictures of more than 64 x 64 pixels.",
    )
    parser.flags.add_argument(
        "--num_probes",
        metavar="N",
        type=common.whole(1),
        default=NUM_PROBES,
        help="Random products with the Jacobian that the image metric is estimated from where "
        "latents have thousands of values, at least 4 for each of their channels. "
        "Default: %(default)s.",
    )


def add_arguments(parser: common.Parser) -> None:
    """Arguments of the command."""
    common.add_generator_flag(parser, common.DEFAULT_GENERATOR, "The generator")
    add_basis_flags(parser)
    parser.flags.add_argument(
        "--seed",
        metavar="SEED",
        type=common.seed,
        default=0,
        help="Seed of the latents. Default: %(default)s.",
    )
    parser.flags.add_argument(
        "--out", metavar="FILE", help="File to write mean, directions, dual and std to (.npz)."
    )
    common.add_quiet_flag(parser)


def main(args: argparse.Namespace) -> int:
    """Runs the command."""
    if args.out:
        common.check_file("--out", args.out)
    import jax
    import numpy as np

    from fpjax.fingerprint.basis import Basis
    from fpjax.fingerprint.fit import fit_basis
    from fpjax.io.atomic import atomic_write
    from fpjax.progress import Display

    common.use_compilation_cache()
    generator = common.open_generator(args.generator)
    with Display(quiet=args.quiet) as progress:
        basis = fit_basis(
            generator,
            jax.random.key(args.seed),
            args.num_samples,
            metric=args.metric,
            num_jacobians=args.num_jacobians,
            num_probes=args.num_probes,
            progress=progress.stage("averaging the image metric"),
        )
    share = np.cumsum(basis.std.astype(np.float64) ** 2)
    share /= share[-1]
    print(f"{len(basis)} directions of {basis.dimension}-d latents, {basis.num_samples} samples")
    print("direction     std   variance up to here")
    shown = sorted({0, 1, 3, 7, 15, 31, 63, 127, 255, 447, len(basis) - 1})
    for i in (i for i in shown if i < len(basis)):
        print(f"{i:9d} {basis.std[i]:7.3f} {100 * share[i]:8.2f} %")
    if args.out:
        arrays: dict[str, Any] = {**basis.arrays()}
        if isinstance(basis, Basis):
            arrays["dual"] = basis.dual
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        with atomic_write(args.out) as file:
            file.write(buffer.getvalue())
        print(f"wrote {common.shown(args.out)}")
    return common.EXIT_OK

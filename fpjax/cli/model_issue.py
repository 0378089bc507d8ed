"""Writes a copy of the generator for one user, whose every image carries that user's key.

  fpjax model issue USER --out FOLDER [--layout fpjax] [--registry FILE] [--scheme SCHEME]

The copy is a plain StyleGAN2, which runs without the scheme and the registry. As `rosinality` or
`nvidia` it is written for those PyTorch programs; let them add the noise maps that are stored with
the weights (randomize_noise=False, noise_mode="const"), as the scheme assumes. What copies show to
their holders: docs/security.md.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from fpjax.cli import common


def add_arguments(parser: common.Parser) -> None:
    """Arguments of the command."""
    parser.add_name("USER", "Whose key the copy carries.")
    common.add_scheme_flags(parser)
    common.add_registry_flag(parser)
    flags = parser.flags
    flags.add_argument(
        "--out", metavar="FOLDER", required=True, help="Folder to write; it must not exist."
    )
    flags.add_argument(
        "--layout",
        choices=("fpjax", "rosinality", "nvidia"),
        default="fpjax",
        help="A folder that --generator and fpjax.load_generator take, or a safetensors file with "
        "the names of rosinality/stylegan2-pytorch or of NVlabs/stylegan2-ada-pytorch. "
        "Default: %(default)s.",
    )


def main(args: argparse.Namespace) -> int:
    """Runs the command."""
    if not args.name:
        raise common.UsageError("name one user: fpjax model issue USER --out FOLDER")
    out = Path(args.out)
    if os.path.lexists(out):
        raise common.CommandError(f"{out} exists already: choose another --out")
    common.check_folder("--out", out)

    from fpjax.fingerprint.issued import issue_model
    from fpjax.models.stylegan2_generator import StyleGAN2Generator

    common.use_compilation_cache()
    scheme = common.open_scheme(args)
    if not isinstance(scheme.generator, StyleGAN2Generator):
        raise common.CommandError(
            f"the scheme's generator {scheme.generator.name!r} is no StyleGAN2: only those can be "
            "written with a key in their weights; fpjax.fingerprint.issued.issue_model wraps it "
            "in Python"
        )
    with common.open_registry(args, scheme.id) as registry:
        key = registry.key_of(args.name)
    copy = issue_model(scheme, key)
    assert isinstance(copy, StyleGAN2Generator)
    if args.layout == "fpjax":
        copy.save(out)
    else:
        from checkpoints_convert.export import export_stylegan2

        for note in export_stylegan2(out, copy.config, copy.params, args.layout):
            common.say(note)
    print(common.shown(out), flush=True)
    return common.EXIT_OK

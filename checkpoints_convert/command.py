"""The command `fpjax-convert FILE OUT_DIR`: published weights to a folder that fpjax opens."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130

SHOWN = 40  # problems of one file; the rest say no more

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
        self.exit(EXIT_USAGE, f"{self.prog}: {clean(message)}; see {self.prog} --help\n")


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
    made.add_argument("--dry-run", action="store_true", help="print the plan and write nothing")
    made.add_argument(
        "--verify",
        action="store_true",
        help="compare what was written with PyTorch's reading of FILE, where PyTorch is installed",
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
        default="ema",
        help="averaged weights (g_ema, G_ema, Gs, model_ema) or raw ones (g, G), where FILE has "
        "both (default: ema)",
    )
    beside = made.add_argument_group("files that belong to FILE")
    beside.add_argument(
        "--config", type=Path, metavar="FILE", help="config.yaml (CompVis) or config.json"
    )
    beside.add_argument("--encoder", type=Path, metavar="FILE", help="encoder of a TAESD decoder")
    beside.add_argument(
        "--heads", type=Path, metavar="FILE", help="LPIPS heads for a VGG16 or AlexNet"
    )
    open_ = made.add_argument_group("what weights cannot show")
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
        "--scale-factor", type=float, metavar="X", help="of latents, where FILE has none"
    )
    open_.add_argument(
        "--mapping-lr-multiplier",
        type=float,
        metavar="X",
        help="of the StyleGAN2 mapping network (default: what FILE says, else 0.01)",
    )
    return made


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def clean(text: object) -> str:
    """Text on one line in which nothing can steer a terminal: names come from strangers' files."""
    line = " ".join(str(text).split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def run(arguments: list[str]) -> int:
    """Runs one command line (without the program's name) and returns its exit code."""
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
        problems = getattr(error, "problems", ())
        for problem in problems[:SHOWN]:
            print(f"  {clean(problem)}", file=sys.stderr)
        if len(problems) > SHOWN:
            print(f"  ... and {len(problems) - SHOWN} more", file=sys.stderr)
        return code


def _run(flags: argparse.Namespace) -> int:
    from checkpoints_convert.convert import convert_file
    from checkpoints_convert.detect import recognise
    from checkpoints_convert.settings import Settings
    from checkpoints_convert.sources.found import Request
    from fpjax.cli.common import Progress

    settings = Settings(
        mapping_lr_multiplier=flags.mapping_lr_multiplier,
        resolution=flags.resolution,
        num_head_channels=flags.num_head_channels,
        num_heads=flags.num_heads,
        new_attention_order=flags.new_attention_order,
        scale_factor=flags.scale_factor,
    )
    request = Request(flags.config, flags.encoder, flags.heads, flags.weights, settings)
    if flags.dry_run:
        _print_source(recognise(flags.file, request), plan=True)
        return EXIT_OK
    progress = Progress()
    written = convert_file(
        flags.file,
        flags.out_dir,
        request,
        dtype=flags.dtype,
        file_format=flags.format,
        verify=flags.verify,
        progress=progress,
    )
    progress.finish()
    _print_source(written.source, plan=False)
    for name in written.nonfinite:
        print(f"fpjax-convert: warning: NaN or infinity in {clean(name)}", file=sys.stderr)
    if written.verified is not None:
        print(f"verified: {written.verified} parameters equal PyTorch's reading, bit by bit")
    elif written.not_verified:
        print(f"fpjax-convert: not verified: {clean(written.not_verified)}", file=sys.stderr)
    print(f"wrote {clean(flags.out_dir)}")
    return EXIT_OK


def _print_source(source, *, plan: bool) -> None:
    print(f"{source.kind}")
    for part in source.parts:
        place = f"{part.folder}: " if part.folder else ""
        print(f"{place}{part.architecture}, {len(part.plan.steps)} parameters")
    for note in source.notes:
        print(f"note: {clean(note)}")
    if not plan:
        return
    for part in source.parts:
        start = f"{part.folder}/" if part.folder else ""
        for step in part.plan.steps:
            line = f"{step.source} {step.source_shape} -> {start}{step.target} {step.shape}"
            print(clean(f"{line} [{step.transform}]"))
    for name, reason in source.ignored:
        print(clean(f"{name} ignored: {reason}"))


def _fail(error: object, code: int) -> int:
    print(f"fpjax-convert: {clean(error)}", file=sys.stderr)
    return code


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()

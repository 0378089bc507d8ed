"""Files that are known, and of networks that fpjax does not have: one line each that says so."""

from __future__ import annotations

import re

from checkpoints_convert.found import Found
from checkpoints_convert.modules import modules_in
from checkpoints_convert.printable import name as shown_name
from checkpoints_convert.publishers import diffusers
from checkpoints_convert.table import ConversionError

# What names must be there (patterns of whole names, below any prefix) -> what the file is.
KNOWN = (
    (
        (r"SE?\.net\.\d+\.weight", r"GE?\.blocks\.\d+\.conv1\.weight"),
        "a StyleGAN2 of lucidrains' stylegan2-pytorch, which is another network (its mapping, its "
        "noise and its resampling are not those of the paper): fpjax has the published one",
    ),
    (
        (r"init_conv\.weight", r"downs\.\d+\.\d+\..*"),
        "a U-Net of lucidrains' denoising-diffusion-pytorch, which is another network: fpjax has "
        "those of CompVis and of diffusers' UNet2DModel",
    ),
    (
        (r"(?:g_)?synthesis\.blocks\.\d+x\d+\..*",),
        "a generator of the first StyleGAN: fpjax has StyleGAN2",
    ),
    (
        (r"progression\.\d+\.conv1\..*", r"to_rgb\.\d+\..*"),
        "a generator of the first StyleGAN: fpjax has StyleGAN2",
    ),
    (
        (r"(?:double|joint|transformer)_blocks\.\d+\..*",),
        "a diffusion transformer: fpjax has denoising U-Nets; its autoencoder converts alone",
    ),
    (
        (r"b4\.const", r"b4\.conv1\.affine\.weight"),
        "a synthesis network without a mapping network, which fpjax needs to draw latents: save "
        "the whole generator",
    ),
)


def refuse(found: Found) -> None:
    """Raises what a file is, if it is known.

    Raises:
        ConversionError: with what it is and what to do.
    """
    for patterns, what in KNOWN:
        compiled = [re.compile(rf"(?:.*[./])?(?:{pattern})") for pattern in patterns]
        if all(any(regex.fullmatch(name) for name in found.all) for regex in compiled):
            raise ConversionError(f"{what}")
    diffusers.refuse_shard(found)
    if modules := modules_in(found.file.tree):
        place, module = modules[0]
        kind = f"{shown_name(module.module)}.{shown_name(module.name)}"
        where = f" below {shown_name(place)!r}" if place else ""
        raise ConversionError(
            f"a whole module of class {kind}{where}, whose parameters have the names of no network "
            "that fpjax has; if it holds one that does, save that one's state_dict()"
        )

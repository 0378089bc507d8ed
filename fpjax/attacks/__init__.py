"""What happens to pictures between their maker and their reader: attacks and post-processing.

>>> import jax, numpy as np
>>> attack = parse("jpeg:quality=75,subsampling=4:2:0")
>>> attack(jax.random.key(0), np.zeros((2, 32, 48, 3), np.uint8)).shape
(2, 32, 48, 3)

Every attack takes a PRNG key and 8-bit images and gives 8-bit images; see `fpjax.attacks.base`.
"""

from fpjax.attacks.base import Attack, AttackError
from fpjax.attacks.blur import BoxBlur, GaussianBlur, MedianBlur, Sharpen
from fpjax.attacks.collusion import Average
from fpjax.attacks.colour import Brightness, Contrast, Gamma, Grey, Hue, Posterise, Saturation
from fpjax.attacks.compression import Avif, Codec, DoubleJpeg, Jpeg, Screenshot, WebP
from fpjax.attacks.crop import CropPad, CropResize
from fpjax.attacks.geometry import Flip, Perspective, Rotate, Shear, Shift
from fpjax.attacks.noise import GaussianNoise, PoissonNoise, SaltAndPepper, SpeckleNoise
from fpjax.attacks.overlay import Erase, Overlay
from fpjax.attacks.regeneration import Regenerate
from fpjax.attacks.registry import ATTACKS, PAPER, Chain, Identity, from_json, parse
from fpjax.attacks.resize import Rescale, Resize

__all__ = [
    "ATTACKS",
    "PAPER",
    "Attack",
    "AttackError",
    "Average",
    "Avif",
    "BoxBlur",
    "Brightness",
    "Chain",
    "Codec",
    "Contrast",
    "CropPad",
    "CropResize",
    "DoubleJpeg",
    "Erase",
    "Flip",
    "Gamma",
    "GaussianBlur",
    "GaussianNoise",
    "Grey",
    "Hue",
    "Identity",
    "Jpeg",
    "MedianBlur",
    "Overlay",
    "Perspective",
    "PoissonNoise",
    "Posterise",
    "Regenerate",
    "Rescale",
    "Resize",
    "Rotate",
    "SaltAndPepper",
    "Saturation",
    "Screenshot",
    "Sharpen",
    "Shear",
    "Shift",
    "SpeckleNoise",
    "WebP",
    "from_json",
    "parse",
]

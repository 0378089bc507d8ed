"""fpjax: latent fingerprints that attribute generated images to the users who made them.

>>> import jax, fpjax
>>> scheme = fpjax.load_scheme("avatars-stylegan2")
>>> keys = fpjax.sample_keys(jax.random.key(1), num=2, length=scheme.key_length)
>>> out = fpjax.generate(scheme, jax.random.key(2), keys)
>>> out.images.shape
(2, 32, 32, 3)

`fpjax.attribute(scheme, images)` reads the keys back. Names are imported when first used, so that
`import fpjax` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOME = {
    "Adam": "fpjax.inversion.adam",
    "Attribution": "fpjax.attribution.decision",
    "Basis": "fpjax.fingerprint.basis",
    "GaussNewton": "fpjax.inversion.gauss_newton",
    "Generated": "fpjax.fingerprint.scheme",
    "Problem": "fpjax.inversion.problem",
    "Registry": "fpjax.attribution.registry",
    "Scheme": "fpjax.fingerprint.scheme",
    "Solution": "fpjax.inversion.solution",
    "Status": "fpjax.inversion.solution",
    "Verdict": "fpjax.attribution.decision",
    "attribute": "fpjax.attribution.decision",
    "calibrate": "fpjax.attribution.calibration",
    "ddim_sample": "fpjax.models.diffusion",
    "fit_basis": "fpjax.fingerprint.basis",
    "generate": "fpjax.fingerprint.scheme",
    "invert": "fpjax.inversion.batching",
    "load_generator": "fpjax.models.generator",
    "load_perceptual": "fpjax.models.generator",
    "load_prior": "fpjax.models.generator",
    "load_scheme": "fpjax.fingerprint.scheme",
    "pca": "fpjax.fingerprint.basis",
    "sample_keys": "fpjax.fingerprint.keys",
    "secret_keys": "fpjax.fingerprint.keys",
}

__all__ = ["__version__", *_HOME]

if TYPE_CHECKING:
    from fpjax.attribution.calibration import calibrate
    from fpjax.attribution.decision import Attribution, Verdict, attribute
    from fpjax.attribution.registry import Registry
    from fpjax.fingerprint.basis import Basis, fit_basis, pca
    from fpjax.fingerprint.keys import sample_keys, secret_keys
    from fpjax.fingerprint.scheme import Generated, Scheme, generate, load_scheme
    from fpjax.inversion.adam import Adam
    from fpjax.inversion.batching import invert
    from fpjax.inversion.gauss_newton import GaussNewton
    from fpjax.inversion.problem import Problem
    from fpjax.inversion.solution import Solution, Status
    from fpjax.models.diffusion import ddim_sample
    from fpjax.models.generator import load_generator, load_perceptual, load_prior


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'fpjax' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])

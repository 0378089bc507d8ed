"""Tensors that stay in their file until asked for: dtypes, storages, strided views, a NaN check."""

import math
import re
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from checkpoints_convert.describe import describe
from checkpoints_convert.readers.limits import CheckpointError, Meter
from checkpoints_convert.readers.regions import Region

MAX_DIMENSIONS = 64  # NumPy's own bound
INT64_MAX = (1 << 63) - 1
TENSOR_COST = 300  # bytes of memory that a tensor and its storage take before they are read

TORCH_DTYPES = {
    **dict.fromkeys(("float64", "double"), "float64"),
    **dict.fromkeys(("float32", "float"), "float32"),
    **dict.fromkeys(("float16", "half"), "float16"),
    **dict.fromkeys(("complex64", "cfloat"), "complex64"),
    **dict.fromkeys(("complex128", "cdouble"), "complex128"),
    **dict.fromkeys(("int16", "short"), "int16"),
    **dict.fromkeys(("int32", "int"), "int32"),
    **dict.fromkeys(("int64", "long"), "int64"),
    **{name: name for name in ("int8", "uint8", "uint16", "uint32", "uint64", "bool", "bfloat16")},
    **{name: name for name in ("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu")},
    **{name: name for name in ("float8_e4m3fnuz", "float8_e5m2fnuz")},
}
"""torch.<name> to the name of the NumPy or ml_dtypes type with the same bits."""

TORCH_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
    "UntypedStorage": "uint8",
    "QInt8Storage": "int8",
    "QUInt8Storage": "uint8",
    "QInt32Storage": "int32",
}
"""torch.<name> storage classes; the Q ones hold the integers of quantised tensors."""

_NUMPY_DESCR = re.compile(r"([<>|=]?)(b1|[iu][1248]|f[248]|c8|c16)")


def dtype_named(name: str) -> np.dtype:
    """NumPy dtype by name, with the narrow floats that ml_dtypes adds.

    >>> dtype_named("bfloat16").itemsize
    2
    """
    if name.startswith(("bfloat", "float8")):
        import ml_dtypes

        if not hasattr(ml_dtypes, name):
            raise CheckpointError(f"dtype {name}", "a dtype of ml_dtypes", "upgrade ml_dtypes")
        return np.dtype(getattr(ml_dtypes, name))
    return np.dtype(name)


def dtype_from_descr(descr: Any) -> tuple[np.dtype, bool] | None:
    """(native dtype, big-endian?) of a NumPy type string such as "<f4"; None if not numeric.

    >>> dtype_from_descr(">f4")
    (dtype('float32'), True)
    """
    match = _NUMPY_DESCR.fullmatch(descr) if isinstance(descr, str) else None
    return match and (np.dtype(match[2]), match[1] == ">")


class Storage:
    """`size` elements of one dtype in a region of the file; tensors are views of it.

    `region` may be filled in later (None until then): the legacy format states where a storage
    lies only after all tensors.
    """

    __slots__ = ("big_endian", "dtype", "quantized", "region", "size")

    def __init__(self, dtype: np.dtype, size: int, region: Region | None, big_endian=False):
        self.dtype, self.size, self.region, self.big_endian = dtype, size, region, big_endian
        self.quantized = False

    @property
    def nbytes(self) -> int:
        """Bytes of the whole storage."""
        return self.size * self.dtype.itemsize

    def __repr__(self) -> str:
        return f"Storage({self.size:,} x {self.dtype})"


class LazyTensor:
    """A strided view of a storage; nothing of it is read before `numpy()`.

    Attributes:
        shape: sizes, a tuple of ints; `()` for a scalar.
        dtype: NumPy or ml_dtypes dtype in this machine's byte order.
        strides: steps in elements, as torch gives them.
        offset: index in the storage of the first element.
        storage: the `Storage`, possibly shared with other tensors.
        unsupported: why it cannot be read; empty if it can.
    """

    __slots__ = ("dtype", "offset", "shape", "storage", "strides", "unsupported")

    shape: tuple[int, ...]
    dtype: np.dtype
    strides: tuple[int, ...]
    offset: int
    storage: Storage | None
    unsupported: str

    def __init__(self, shape, dtype, strides, offset, storage, meter: Meter):
        itemsize = dtype.itemsize
        if len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS:
            raise CheckpointError(
                f"a tensor with {len(shape)} sizes and {len(strides)} strides",
                f"as many of each, and at most {MAX_DIMENSIONS}",
            )
        for number in (*shape, *strides, offset):
            if type(number) is not int or not 0 <= number <= INT64_MAX:
                raise CheckpointError(
                    f"{describe(number)} in the sizes, strides or offset of a tensor",
                    "ints from 0 to 2**63 - 1",
                )
        # Sizes of 0 are skipped: NumPy makes no (0, 2**62, 2**62) array either.
        # Views share bytes of the file and strides of 0 repeat them: their sum is bounded.
        claimed = math.prod(size for size in shape if size) * itemsize
        meter.tensor(claimed)
        meter.make(TENSOR_COST + 16 * len(shape))
        if claimed > INT64_MAX:
            raise CheckpointError(f"a tensor of {describe(claimed)} bytes", "at most 2**63 - 1")
        if 0 not in shape:
            last = offset + sum(
                (size - 1) * step for size, step in zip(shape, strides, strict=True)
            )
            if (last + 1) * itemsize > storage.nbytes:
                raise CheckpointError(
                    f"a tensor of shape {describe(shape)} that reaches element {last:,}",
                    f"at most the {storage.nbytes // itemsize:,} elements of its storage",
                )
        self.shape, self.dtype, self.strides = tuple(shape), dtype, tuple(strides)
        self.offset, self.storage, self.unsupported = offset, storage, ""

    @classmethod
    def pending(cls) -> "LazyTensor":
        """A NumPy array that its pickle has named but not filled yet."""
        tensor = cls.__new__(cls)
        tensor.become_unsupported((), np.dtype("O"), "an array that the pickle never filled")
        return tensor

    def become_unsupported(self, shape: tuple, dtype: np.dtype, reason: str) -> None:
        """Keep shape and dtype for inspection, and say why the values cannot be read."""
        self.shape, self.dtype, self.strides, self.offset = shape, dtype, (), 0
        self.storage, self.unsupported = None, reason

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the values by shape, whatever the storage holds."""
        return self.size * self.dtype.itemsize

    def __repr__(self) -> str:
        return f"LazyTensor({self.shape}, {self.dtype})"

    def numpy(self) -> np.ndarray:
        """The values: a read-only array of `shape` and `dtype`, memory-mapped where possible.

        A copy is made where the bytes in the file are in the other byte order, are unaligned, or
        are bools. Raises CheckpointError if the file changed or differs from its checksum, if the
        values are unsupported, or if a copy does not fit in memory.
        """
        try:
            return self._read()
        except MemoryError as error:
            size = f"a tensor of {self.nbytes:,} bytes, more than fits in memory"
            raise CheckpointError(size, "one that fits", "add memory") from error

    def _read(self) -> np.ndarray:
        if self.storage is None or self.storage.region is None:
            reason = self.unsupported or "a storage that is not in the file"
            raise CheckpointError(reason, "numbers", "save the values as a plain float tensor")
        itemsize = self.dtype.itemsize
        if 0 in self.shape:
            result = np.empty(self.shape, self.dtype)
            result.flags.writeable = False
            return result
        steps = [0 if n == 1 else step for n, step in zip(self.shape, self.strides, strict=True)]
        count = 1 + sum((n - 1) * step for n, step in zip(self.shape, steps, strict=True))
        start = self.offset * itemsize
        raw = self.storage.region.slice(start, start + count * itemsize, "a tensor").array()
        if self.storage.big_endian != (sys.byteorder == "big") and itemsize > 1:
            width = itemsize // 2 if self.dtype.kind == "c" else itemsize
            raw = raw.view(f"u{width}").byteswap().view(np.uint8)
        if self.dtype == np.bool_:
            raw = raw != 0  # NumPy's behaviour on bools other than 0 and 1 is undefined
        if raw.__array_interface__["data"][0] % self.dtype.alignment:
            raw = np.frombuffer(raw.tobytes(), np.uint8)  # JAX wants aligned arrays
        byte_steps = [step * itemsize for step in steps]
        result = np.ndarray(self.shape, self.dtype, raw, strides=byte_steps)
        result.flags.writeable = False
        return result


def contiguous_strides(shape) -> tuple[int, ...]:
    """Row-major strides in elements.

    >>> contiguous_strides((2, 3, 4))
    (12, 4, 1)
    """
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        # A size of 0 has no elements, and the product must not outgrow an int64 unseen.
        step = min(step * max(size, 1), INT64_MAX)
    return tuple(reversed(strides))


def nonfinite(tensors: Mapping[str, "LazyTensor | np.ndarray"]) -> list[str]:
    """Names of the tensors that hold a NaN or an infinity, in order.

    >>> nonfinite({"ok": np.ones(3), "bad": np.array([1.0, np.inf])})
    ['bad']
    """
    names = []
    for name, tensor in tensors.items():
        values = tensor.numpy() if isinstance(tensor, LazyTensor) else np.asarray(tensor)
        if values.dtype.kind in "biu" or not values.size:
            continue
        # One of each repeated element, and in the order of memory, so that no copy is made; and in
        # pieces, so that no mask as long as a large tensor is made.
        once = tuple(slice(None) if step else slice(1) for step in values.strides)
        flat = values[once].ravel("K")
        pieces = (flat[start : start + (1 << 22)] for start in range(0, flat.size, 1 << 22))
        if not all(np.isfinite(piece).all() for piece in pieces):
            names.append(name)
    return names

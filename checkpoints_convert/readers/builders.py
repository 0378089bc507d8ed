"""The closed list of calls that mean data: tensors, arrays, dicts, bytes, sets, numbers.

A builder takes the machine and the arguments, a tuple, and gives a tree node, or NotImplemented
when the call does not mean what it knows (it then becomes an `Opaque`).
"""

from typing import Any

import numpy as np

from checkpoints_convert.describe import describe
from checkpoints_convert.readers.regions import Region
from checkpoints_convert.readers.tensors import (
    INT64_MAX,
    TENSOR_COST,
    TORCH_DTYPES,
    LazyTensor,
    Storage,
    contiguous_strides,
    dtype_from_descr,
    dtype_named,
)
from checkpoints_convert.readers.tree import Global, Opaque

NODE_COST = 300  # bytes of memory that a container takes, with its place in `tree.measure`,
ELEMENT_COST = 136  # and one of its elements, where a set has most
RECORD_COST = 700  # that an Opaque takes, with its arguments
NESTED_COST = 200  # operations that reading one nested file counts for,
NESTED_BYTES = 16_384  # and one more for so many bytes of it

BUILDERS: dict = {}

UNSUPPORTED = {
    "torch._utils._rebuild_qtensor": "a quantised tensor; save tensor.dequantize()",
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor; save tensor.to_dense()",
    "torch._utils._rebuild_sparse_csr_tensor": "a sparse tensor; save tensor.to_dense()",
    "torch._utils._rebuild_nested_tensor": "a nested tensor; save its parts",
    "torch._utils._rebuild_meta_tensor_no_storage": "a meta tensor, which has no values",
    "torch._utils._rebuild_wrapper_subclass": "a tensor subclass without storage",
    "torch._utils._rebuild_tensor_v2": "a conjugated or negated view; save tensor.resolve_conj()",
    "torch._utils._rebuild_tensor_v3": "a dtype without NumPy counterpart; save tensor.float()",
    "torch._utils._rebuild_device_tensor_from_numpy": "a device tensor in another dtype",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": "a device tensor in another dtype",
    "torch._utils._rebuild_xla_tensor": "a device tensor in another dtype",
    "torch._tensor._rebuild_from_type": "a tensor subclass; save tensor.as_subclass(Tensor)",
    "torch._tensor._rebuild_from_type_v2": "a tensor subclass; save tensor.as_subclass(Tensor)",
}
"""Calls that make tensors of kinds that are not read, when no builder takes them."""


def builder(*names: str):
    """Register a builder for the globals of these names."""

    def register(function):
        BUILDERS.update(dict.fromkeys(names, function))
        return function

    return register


def _expect(machine, condition: bool, name: str, args: tuple) -> None:
    if not condition:
        given = ", ".join(type(arg).__name__ for arg in args[:10])
        raise machine.error(f"{name} of ({given})", "the arguments that its own library writes")


def _is_shape(value: Any) -> bool:
    return type(value) in (tuple, list) and len(value) <= 64 and all(type(n) is int for n in value)


# torch


def _tensor(machine, name, args, dtype=None) -> LazyTensor:
    storage, offset, shape, strides = args[:4]
    ok = type(storage) is Storage and type(offset) is int and _is_shape(shape)
    _expect(machine, ok and _is_shape(strides), name, args)
    if storage.quantized:
        raise machine.error("a plain tensor in a quantised storage", "a plain storage")
    return LazyTensor(
        tuple(shape), dtype or storage.dtype, tuple(strides), offset, storage, machine.meter
    )


@builder("torch._utils._rebuild_tensor")
def _rebuild_tensor(machine, args):
    _expect(machine, len(args) == 4, "_rebuild_tensor", args)
    return _tensor(machine, "_rebuild_tensor", args)


@builder("torch._utils._rebuild_tensor_v2")
def _rebuild_tensor_v2(machine, args):
    _expect(machine, 5 <= len(args) <= 7, "_rebuild_tensor_v2", args)
    if len(args) == 7 and args[6]:  # metadata: the conj and neg bits
        return NotImplemented
    return _tensor(machine, "_rebuild_tensor_v2", args)


@builder("torch._utils._rebuild_tensor_v3")
def _rebuild_tensor_v3(machine, args):
    _expect(machine, 7 <= len(args) <= 8, "_rebuild_tensor_v3", args)
    dtype = torch_dtype(args[6])
    if dtype is None or (len(args) == 8 and args[7]):
        return NotImplemented
    return _tensor(machine, "_rebuild_tensor_v3", args, dtype)


def torch_dtype(value: Any) -> np.dtype | None:
    """NumPy dtype of a torch dtype's global; None for others."""
    if type(value) is not Global or value.module != "torch" or value.name not in TORCH_DTYPES:
        return None
    return dtype_named(TORCH_DTYPES[value.name])


@builder("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
def _rebuild_parameter(machine, args):
    _expect(machine, 3 <= len(args) <= 4, "_rebuild_parameter", args)
    return args[0]  # attributes set on a parameter are not weights


_PLAIN = {"torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"}
_REBUILDS = {f"torch._utils._rebuild_tensor{version}" for version in ("", "_v2", "_v3")}
_REBUILDS |= {"torch._utils._rebuild_parameter"}


@builder("torch._tensor._rebuild_from_type_v2", "torch._tensor._rebuild_from_type")
def _rebuild_from_type(machine, args):
    """A tensor that carries Python attributes: the tensor alone."""
    _expect(machine, len(args) == 4, "_rebuild_from_type_v2", args)
    if any(type(name) is not Global for name in args[:2]):
        return NotImplemented
    if str(args[0]) not in _REBUILDS or str(args[1]) not in _PLAIN:
        return NotImplemented
    return machine.call(args[0], args[2])


@builder(
    "torch._utils._rebuild_device_tensor_from_numpy",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor",
    "torch._utils._rebuild_xla_tensor",
)
def _rebuild_device_tensor(machine, args):
    if not args or type(args[0]) is not LazyTensor or args[0].dtype != torch_dtype(args[1]):
        return NotImplemented
    return args[0]


@builder("torch.storage._load_from_bytes")
def _load_from_bytes(machine, args):
    _expect(machine, len(args) == 1, "_load_from_bytes", args)
    data: Any = args[0]
    _expect(machine, type(data) in (bytes, Region), "_load_from_bytes", args)
    machine.meter.count(NESTED_COST + len(data) // NESTED_BYTES)
    machine.meter.make(NESTED_COST)
    return machine.load_nested(data if type(data) is Region else Region.of_bytes(data))


@builder("torch.Size")
def _size(machine, args):
    _expect(machine, len(args) == 1 and _is_shape(args[0]), "torch.Size", args)
    return tuple(args[0])


@builder("torch.device")
def _device(machine, args):
    ok = 1 <= len(args) <= 2 and type(args[0]) is str and len(args[0]) < 100
    _expect(machine, ok and all(type(index) is int for index in args[1:]), "torch.device", args)
    return ":".join([args[0], *(f"{index & 0xFFFF}" for index in args[1:])])


# Python's own containers


def _items(machine, name, args) -> list | tuple:
    ok = not args or (len(args) == 1 and type(args[0]) in (list, tuple))
    _expect(machine, ok, name, args)
    items = args[0] if args else ()
    # The same list may be given again and again.
    machine.meter.count(len(items))
    machine.meter.make(NODE_COST + ELEMENT_COST * len(items))
    return items


@builder("collections.OrderedDict")
def _ordered_dict(machine, args):
    result: dict = {}
    for pair in _items(machine, "OrderedDict", args):
        _expect(machine, type(pair) in (list, tuple) and len(pair) == 2, "OrderedDict", args)
        machine.update(result, list(pair))
    return result


@builder("collections.defaultdict")
def _default_dict(machine, args):
    _expect(machine, len(args) <= 1, "defaultdict", args)
    machine.meter.make(NODE_COST)
    return {}


@builder("builtins.dict")
def _empty_dict(machine, args):
    machine.meter.make(NODE_COST)
    return NotImplemented if args else {}


@builder("builtins.list")
def _list_of(machine, args):
    return list(_items(machine, "list", args))


@builder("builtins.set")
def _set_of(machine, args):
    return {machine.key(item) for item in _items(machine, "set", args)}


@builder("builtins.frozenset")
def _frozenset_of(machine, args):
    return frozenset(machine.key(item) for item in _items(machine, "frozenset", args))


@builder("builtins.complex")
def _complex_of(machine, args):
    _expect(machine, len(args) == 2 and all(type(x) is float for x in args), "complex", args)
    return complex(*args)


@builder("_codecs.encode")
def _encode(machine, args):
    """Bytes, as protocols 0 to 2 write them."""
    if len(args) != 2 or type(args[0]) is not str or args[1] not in ("latin1", "latin-1"):
        return NotImplemented
    machine.meter.make(NODE_COST + 2 * len(args[0]))
    try:
        return args[0].encode("latin-1")
    except UnicodeEncodeError as error:
        raise machine.error("bytes with values over 255", "bytes as Latin-1 text") from error


@builder("builtins.bytes", "builtins.bytearray")
def _bytes_of(machine, args):
    if not args:
        return b""
    if len(args) == 1 and type(args[0]) in (bytes, Region):
        return args[0]
    return _encode(machine, args)


@builder("copyreg._reconstructor", "copyreg.__newobj__")
def _reconstruct(machine, args):
    """An object as protocols 0 and 1 write it: (class, base, base's value) becomes the class."""
    if not args or type(args[0]) is not Global:
        return NotImplemented
    machine.meter.make(RECORD_COST)
    cls, rest = args[0], args[1:]
    result = Opaque(cls.module, cls.name)
    base = str(rest[0]) if len(rest) == 2 and type(rest[0]) is Global else ""
    if base == "builtins.dict" and type(rest[1]) is dict:
        result.entries = rest[1]
    elif base == "builtins.list" and type(rest[1]) is list:
        result.elements = rest[1]
    elif base != "builtins.object":
        result.args = rest
    return result


# NumPy


def _numpy_dtype(value: Any) -> tuple[np.dtype, bool] | None:
    """(native dtype, big-endian?) of a pickled numpy.dtype; None if it is not a numeric one."""
    if type(value) is not Opaque or (value.module, value.name) != ("numpy", "dtype"):
        return None
    descr, state = value.args[0] if value.args else None, value.state
    if type(descr) is Global and descr.module == "ml_dtypes":
        known = descr.name in TORCH_DTYPES.values()
        return (dtype_named(descr.name), False) if known else None
    found = dtype_from_descr(descr)
    if found and type(state) is tuple and len(state) > 1 and state[1] == ">":
        found = found[0], True
    return found


@builder("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
def _reconstruct_array(machine, args):
    """An array that BUILD fills."""
    if not args or args[0] != Global("numpy", "ndarray"):
        return NotImplemented
    machine.meter.make(2 * TENSOR_COST)  # it may never be filled
    array = LazyTensor.pending()
    machine.pending[id(array)] = array
    return array


@builder("numpy.ndarray.__setstate__")
def _set_array_state(machine, args):
    """Fill an array from (version, shape, dtype, Fortran order, contents)."""
    array, state = args
    ok = type(array) is LazyTensor and type(state) is tuple and 4 <= len(state) <= 5
    ok = ok and id(array) in machine.pending
    _expect(machine, ok and _is_shape(state[-4]), "ndarray.__setstate__", args)
    shape, dtype, fortran, contents = state[-4:]
    _fill(machine, array, tuple(shape), dtype, contents, "F" if fortran else "C")
    del machine.pending[id(array)]


def _fill(machine, array: LazyTensor, shape: tuple, dtype, contents, order, axes=None) -> None:
    found = _numpy_dtype(dtype)
    if found is None:
        reason = "an array of objects, text, records or dates, not of numbers"
        return array.become_unsupported(shape, np.dtype("O"), reason)
    native, big_endian = found
    if type(contents) is str and contents.isascii():
        contents = contents.encode()  # a Python 2 string that happened to be ASCII
    if type(contents) is bytes:
        contents = Region.of_bytes(contents)
    count = 1
    for length in shape:
        count = min(count * max(length, 0), INT64_MAX)
    if type(contents) is not Region or len(contents) != count * native.itemsize:
        size = f"{len(contents):,} bytes" if type(contents) is Region else "no bytes"
        raise machine.error(
            f"an array of shape {describe(shape)} with {size}", f"{count:,} x {native}"
        )
    strides = contiguous_strides(shape[::-1])[::-1] if order == "F" else contiguous_strides(shape)
    if axes is not None:
        shape, strides = (tuple(row[axis] for axis in axes) for row in (shape, strides))
    storage = Storage(native, count, contents, big_endian)
    array.__init__(shape, native, strides, 0, storage, machine.meter)


@builder("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer")
def _array_from_buffer(machine, args):
    """An array as protocol 5 writes it: (buffer, dtype, shape, order, axes of order "K")."""
    ok = 4 <= len(args) <= 5 and _is_shape(args[2]) and args[3] in ("C", "F", "K")
    axes = args[4] if len(args) == 5 and args[3] == "K" else None
    ok = ok and (axes is None or (_is_shape(axes) and sorted(axes) == list(range(len(args[2])))))
    _expect(machine, ok, "_frombuffer", args)
    array = LazyTensor.pending()
    _fill(machine, array, tuple(args[2]), args[1], args[0], args[3], axes)
    return array


@builder("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
def _scalar(machine, args):
    """A NumPy scalar, as a Python number."""
    found = _numpy_dtype(args[0]) if len(args) == 2 else None
    data = args[1].encode() if found and type(args[1]) is str else args[-1] if args else None
    if found is None or type(data) is not bytes:
        return NotImplemented
    dtype, big_endian = found
    if len(data) != dtype.itemsize:
        raise machine.error(f"{len(data)} bytes for a {dtype}", f"{dtype.itemsize}")
    if dtype == np.bool_:
        return data != b"\0"
    return np.frombuffer(data, dtype.newbyteorder(">" if big_endian else "<"))[0].item()

"""What a checkpoint file may ask for: the limits, the meter that enforces them, the one error."""

from dataclasses import dataclass, fields

from checkpoints_convert.describe import describe
from fpjax.errors import FpjaxError

GIB = 1 << 30
MIB = 1 << 20
SMALL_OBJECTS = 250_000  # so many objects need no large file

DAMAGED = "get the file again and compare its SHA-256 with the publisher's"


class CheckpointError(FpjaxError, ValueError):
    """A file that cannot be read as a checkpoint: which file, what was found, what to do.

    It is the only exception that the readers let out.

    >>> error = CheckpointError("a zip without data.pkl", "a file made by torch.save")
    >>> error.path = "model.pt"
    >>> print(error)
    model.pt: found a zip without data.pkl; expected a file made by torch.save; get the file ...
    """

    def __init__(self, found: str, expected: str, advice: str = DAMAGED, path: str = ""):
        super().__init__(found)
        self.found, self.expected, self.advice, self.path = found, expected, advice, path

    def __str__(self) -> str:
        where = f"{one_line(self.path)}: " if self.path else ""
        return f"{where}found {self.found}; expected {self.expected}; {self.advice}"


def one_line(path: str) -> str:
    """A path as it is, or escaped if it holds a newline or worse."""
    return path if path.isprintable() else repr(path)[1:-1]


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds on what one file may claim; sizes in bytes, the rest are counts.

    What a file makes is bounded in proportion to its size: `base_bytes + ratio * size` for the
    memory that reading takes (objects, text, unpacked entries), and as much again for its tensors,
    each counted by its shape. The defaults fit every published checkpoint of the models in
    `mappings`. Raise one with `dataclasses.replace` for a file whose origin is trusted.

    >>> Limits().allowance(10 * MIB) // MIB
    104
    """

    file_bytes: int = 64 * GIB
    """Size of the file itself."""
    base_bytes: int = 64 * MIB
    """What a file of any size may make."""
    ratio: int = 4
    """What it may make beyond that, for each of its bytes."""
    string_bytes: int = 16 * MIB
    """One string, and all names of one listing together, each with 150 for its place."""
    header_bytes: int = 25 * MIB
    """Header of a safetensors file."""
    depth: int = 256
    """Containers inside each other."""
    nesting: int = 3
    """Checkpoints inside checkpoints: tensors pickled with `torch.storage._load_from_bytes`."""
    objects: int = 4_000_000
    """Pickle operations, archive entries, and nodes of the object tree counted once a path. A small
    file has fewer: 250,000, and one for each of its bytes."""
    odd_keys: int = 1000
    """Dict keys and set elements that are floats or tuples: they can be made to collide."""
    unpackings: int = 16
    """How often the compressed entries of an archive may be unpacked, on average."""

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is not int or value < 0:
                raise CheckpointError(
                    f"Limits.{field.name} = {describe(value)}",
                    "an int of 0 or more",
                    "correct the limit",
                )

    def allowance(self, size: int) -> int:
        """Bytes that a file of `size` bytes may make."""
        return self.base_bytes + self.ratio * size


class Meter:
    """Counts down what is left of the limits while one file is read.

    Attributes:
        limits: the limits themselves.
        memory: bytes that objects, text and unpacked entries may take. Costs are counted upwards,
            and an eighth of the base and one copy of the file are kept for the reader itself.
        tensors: bytes that tensors may have, by their shapes.
        steps: see `Limits.objects`.
        objects: what is left of them.
        odd_keys: see `Limits.odd_keys`.
    """

    __slots__ = ("limits", "memory", "objects", "odd_keys", "steps", "tensors")

    def __init__(self, limits: Limits, file_bytes: int):
        self.limits = limits
        self.memory = limits.allowance(file_bytes) - limits.base_bytes // 8
        self.memory -= min(1, limits.ratio) * file_bytes
        self.tensors = limits.allowance(file_bytes)
        self.steps = self.objects = min(limits.objects, SMALL_OBJECTS + file_bytes)
        self.odd_keys = limits.odd_keys

    def make(self, size: int) -> None:
        """Count `size` bytes of memory; CheckpointError when there is no room for them."""
        self.memory -= size
        if self.memory < 0:
            raise over_allowance(self.limits, "memory")

    def room(self, size: int) -> None:
        """CheckpointError unless `size` bytes could be made, which is not counted."""
        if size > self.memory:
            raise over_allowance(self.limits, "memory")

    def tensor(self, size: int) -> None:
        """Count a tensor of `size` bytes by its shape."""
        self.tensors -= size
        if self.tensors < 0:
            raise over_allowance(self.limits, "tensors")

    def count(self, objects: int = 1) -> None:
        """Count objects or steps."""
        self.objects -= objects
        if self.objects < 0:
            raise over_limit(self.limits, "objects")

    def odd_key(self) -> None:
        """Count a key whose hash a file can choose."""
        self.odd_keys -= 1
        if self.odd_keys < 0:
            raise over_limit(self.limits, "odd_keys")


def over_limit(limits: Limits, name: str) -> CheckpointError:
    """The error for a file that exceeds the limit `name`."""
    return CheckpointError(
        f"more than the allowed {getattr(limits, name):,} ({name})",
        f"at most {getattr(limits, name):,}",
        f"if the file's origin is trusted, pass limits=Limits({name}=...) with a larger value",
    )


def over_allowance(limits: Limits, what: str) -> CheckpointError:
    """The error for a file that makes more than its size allows."""
    most = f"{limits.base_bytes / MIB:g} MiB and {limits.ratio} times the file"
    return CheckpointError(
        f"more {what} than its size allows",
        f"at most {most} (base_bytes, ratio)",
        "if the file's origin is trusted, pass limits=Limits(ratio=...) with a larger value",
    )

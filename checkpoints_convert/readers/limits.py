"""What a checkpoint file may ask for: the limits, the meter that enforces them, the one error."""

from dataclasses import dataclass, fields

GIB = 1 << 30
MIB = 1 << 20

DAMAGED = "get the file again and compare its SHA-256 with the publisher's"


class CheckpointError(ValueError):
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
        where = f"{self.path}: " if self.path else ""
        return f"{where}found {self.found}; expected {self.expected}; {self.advice}"


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds on what one file may claim; sizes in bytes, the rest are counts.

    The defaults fit every published checkpoint of the models in `mappings`. Raise one with
    `dataclasses.replace` for a file whose origin is trusted.

    >>> Limits().depth
    256
    """

    file_bytes: int = 64 * GIB
    """Size of the file itself."""
    pickle_bytes: int = 512 * MIB
    """Text and short byte strings decoded from all pickles of the file."""
    string_bytes: int = 256 * MIB
    """One string, and all tensor names of one listing together."""
    header_bytes: int = 25 * MIB
    """Header of a safetensors file."""
    depth: int = 256
    """Containers inside each other."""
    nesting: int = 3
    """Checkpoints inside checkpoints: tensors pickled with `torch.storage._load_from_bytes`."""
    memo_entries: int = 2_000_000
    """Memo slots of one pickle."""
    objects: int = 4_000_000
    """Pickle operations, archive entries, and nodes of the object tree counted once a path."""
    tensor_bytes: int = 64 * GIB
    """All tensors together, each counted by its shape."""
    expanded_bytes: int = 256 * MIB
    """One tensor whose shape repeats elements of a smaller storage (stride 0)."""
    compression_ratio: int = 200
    """Unpacked over packed size of an archive entry larger than 16 MiB."""

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is not int or value < 0:
                raise CheckpointError(
                    f"Limits.{field.name} = {value!r}", "an int of 0 or more", "correct the limit"
                )


class Meter:
    """Counts down what is left of the limits while one file is read."""

    __slots__ = ("limits", "objects", "pickle_bytes", "tensor_bytes")

    def __init__(self, limits: Limits):
        self.limits = limits
        self.objects = limits.objects
        self.pickle_bytes = limits.pickle_bytes
        self.tensor_bytes = limits.tensor_bytes

    def charge(self, name: str, amount: int = 1) -> None:
        """Take `amount` off the limit `name`; CheckpointError when nothing is left."""
        left = getattr(self, name) - amount
        setattr(self, name, left)
        if left < 0:
            raise over_limit(self.limits, name)


def over_limit(limits: Limits, name: str) -> CheckpointError:
    """The error for a file that exceeds the limit `name`."""
    return CheckpointError(
        f"more than the allowed {getattr(limits, name):,} ({name})",
        f"at most {getattr(limits, name):,}",
        f"if the file's origin is trusted, pass limits=Limits({name}=...) with a larger value",
    )

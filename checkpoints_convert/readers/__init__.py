"""Safe readers for checkpoint files: they need no torch and run nothing that a file contains.

`read(path)` tells torch zips, torch streams from before 1.6, bare pickles, safetensors, npz and npy
by their bytes. Pickles are interpreted by a machine of our own into an inert tree: a global is a
name, and only a closed list of tensor, array and container builders has a meaning.

Entries of archives are compared with their CRC-32 when they are read. Other formats, and archives
whose writer left the checksums out, have none: compare `Checkpoint.sha256()` with the publisher's.
"""

from checkpoints_convert.readers.checkpoint import Checkpoint, read
from checkpoints_convert.readers.limits import CheckpointError, Limits
from checkpoints_convert.readers.names import is_module
from checkpoints_convert.readers.nvidia import (
    is_persistent,
    is_tf_network,
    persistent_state_dict,
    tf_network,
)
from checkpoints_convert.readers.regions import Region
from checkpoints_convert.readers.tensors import LazyTensor, nonfinite
from checkpoints_convert.readers.tree import Global, Opaque, find

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Global",
    "LazyTensor",
    "Limits",
    "Opaque",
    "Region",
    "find",
    "is_module",
    "is_persistent",
    "is_tf_network",
    "nonfinite",
    "persistent_state_dict",
    "read",
    "tf_network",
]

"""Reads files in children whose memory the operating system limits: `python -m ... FILE ...`.

A child may take 64 MiB and 4 times the file beyond what it had after the imports (address space,
so that maps of the file count too). Prints a JSON list of [outcome, CPU seconds] in order.
"""

import json
import os
import resource
import sys

import numpy as np

from checkpoints_convert import readers
from checkpoints_convert.readers.tensors import dtype_named

dtype_named("bfloat16")  # what is imported at first use is not the file's doing
np.lib.stride_tricks.as_strided(np.ones(2)).sum()


def address_space() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def use(path: str) -> str:
    """Reads all that a file holds, as a conversion would, one tensor at a time."""
    checkpoint = readers.read(path)
    for _, module in readers.find(checkpoint.tree, readers.is_persistent):
        readers.persistent_state_dict(module)
    for _, network in readers.find(checkpoint.tree, readers.is_tf_network):
        readers.tf_network(network)
    tensors = checkpoint.tensors()
    for name, tensor in tensors.items():
        readers.nonfinite({name: tensor})
    return f"read {len(tensors)}"


def child(path: str) -> str:
    most = address_space() + (64 << 20) + 4 * os.path.getsize(path)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    try:
        return use(path)
    except readers.CheckpointError as error:
        return str(error)[:1000]
    except BaseException as error:
        return f"{type(error).__name__} escaped"


def main() -> None:
    outcomes = []
    for path in sys.argv[1:]:
        receive, send = os.pipe()
        process = os.fork()
        if not process:
            os.write(send, child(path).encode()[:4000])
            os._exit(0)
        _, status, usage = os.wait4(process, 0)
        os.close(send)
        text = os.read(receive, 5000).decode()
        os.close(receive)
        died = f"died with status {status}"
        outcomes.append([text or died, usage.ru_utime + usage.ru_stime])
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main()

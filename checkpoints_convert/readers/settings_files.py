"""JSON and YAML settings of strangers, bounded before they are parsed.

Settings of published models have a few kilobytes. Both parsers take 20 to 500 bytes of memory for
a byte of hostile text, so that what they are given is small. YAML's aliases name a node again
(`*name`, `<<`), and a few hundred bytes of them stand for billions of values: none are allowed.
"""

import json
import os
from typing import Any

from checkpoints_convert.describe import describe
from checkpoints_convert.readers.limits import CheckpointError, Limits
from checkpoints_convert.readers.regions import FileBacking

JSON_BYTES = 2 << 20  # the index of a model in many files may have hundreds of kilobytes
YAML_BYTES = 1 << 16
PLAIN = "a file of settings, as their publisher wrote it"


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises CheckpointError, and nothing else, for a file that is missing, no regular file, over
    2 MiB, no UTF-8 text or no JSON, that names something twice, or holds something else.

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "config.json"
    >>> _ = path.write_text('{"sample_size": 32}')
    >>> read_json(path)
    {'sample_size': 32}
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError("something is named twice")
        return result

    return _object(path, JSON_BYTES, lambda text: json.loads(text, object_pairs_hook=unique))


def read_yaml(path: str | os.PathLike) -> dict[str, Any]:
    """The mapping that a YAML file holds, by PyYAML's safe loader; nothing in it is run.

    Raises CheckpointError as `read_json` does, over 64 KiB, for aliases, and if PyYAML is not
    installed.
    """
    try:
        import yaml
    except ModuleNotFoundError as error:
        found, advice = "YAML, and no PyYAML to read it with", "pip install pyyaml"
        raise CheckpointError(found, "PyYAML", advice, os.fspath(path)) from error

    class Loader(yaml.SafeLoader):
        """The safe loader without aliases."""

        def compose_node(self, parent, index):
            if self.check_event(yaml.AliasEvent):
                raise ValueError("an alias (*name): write the value out")
            return super().compose_node(parent, index)

    return _object(path, YAML_BYTES, lambda text: yaml.load(text, Loader))


def _object(path: str | os.PathLike, most: int, parse) -> dict[str, Any]:
    name = os.path.abspath(os.fsdecode(path))
    try:
        file = FileBacking(name, Limits())  # it refuses pipes and devices at once
        if file.size > most:
            raise CheckpointError(f"{file.size:,} bytes", f"at most {most:,}; {PLAIN}")
        value = parse(file.read(0, file.size).tobytes().decode("utf-8"))
    except CheckpointError as error:
        error.path = error.path or name
        raise
    except MemoryError as error:
        raise CheckpointError("more than fits in memory", PLAIN, path=name) from error
    except Exception as error:
        # PyYAML's constructors let out what a bad date, number or key makes Python raise.
        reason = describe(" ".join(str(error)[:1000].split()), 300)
        found = f"text that cannot be parsed ({type(error).__name__}: {reason})"
        raise CheckpointError(found, PLAIN, path=name) from error
    if type(value) is not dict:
        raise CheckpointError(f"a {type(value).__name__}", "names with values", path=name)
    return value

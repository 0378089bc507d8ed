"""fpjax generators written back in the layouts of PyTorch programs, for people who run those.

    FOLDER/generator.safetensors  the tensors under the program's names, in its shapes, float32
    FOLDER/arguments.json         what to construct the program's generator with

`fpjax-convert FOLDER/generator.safetensors OUT` gives the same parameters again, bit for bit.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from checkpoints_convert.publishers import nvidia, rosinality
from checkpoints_convert.publishers.stylegan2 import ARGUMENTS, Published
from fpjax.io.atomic import atomic_directory
from fpjax.models.stylegan2 import StyleGAN2Config

LAYOUTS: dict[str, Callable[[StyleGAN2Config, Mapping[str, Any]], Published]] = {
    "rosinality": rosinality.export_generator,
    "nvidia": nvidia.export_generator,
}
"""By name: rosinality/stylegan2-pytorch, and NVlabs/stylegan2-ada-pytorch."""


def export_stylegan2(
    path: str | os.PathLike, config: StyleGAN2Config, params: Mapping[str, Any], layout: str
) -> tuple[str, ...]:
    """Writes a StyleGAN2 to a new folder in a publisher's layout, atomically.

    Args:
      path: the folder; it must not exist.
      config: the architecture.
      params: its parameter tree, float32.
      layout: "rosinality" or "nvidia".

    Returns:
      Sentences that whoever runs it must know.

    Raises:
      FileExistsError: if the folder exists.
      ValueError: for another layout.
      ConversionError: for an architecture that the program does not have.

    >>> import jax, tempfile
    >>> from fpjax.models import stylegan2
    >>> config = StyleGAN2Config(8, 16, 16, 2, channel_base=64)
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     params = stylegan2.init(config, jax.random.key(0))
    ...     notes = export_stylegan2(f"{parent}/model", config, params, "nvidia")
    ...     print(notes, sorted(os.listdir(f"{parent}/model")))
    () ['arguments.json', 'generator.safetensors']
    """
    from safetensors.numpy import save_file

    if layout not in LAYOUTS:
        raise ValueError(f"layout {layout!r}: choose one of {', '.join(LAYOUTS)}")
    tensors, arguments, notes = LAYOUTS[layout](config, params)
    with atomic_directory(path) as folder:
        metadata = {"format": "pt", ARGUMENTS: json.dumps(arguments)}
        save_file(tensors, folder / "generator.safetensors", metadata)
        (folder / "arguments.json").write_text(json.dumps(arguments, indent=2) + "\n", "utf-8")
    return notes

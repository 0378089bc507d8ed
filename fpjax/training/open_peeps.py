"""TFDS builder of Open Peeps avatars (CC0), stored as ArrayRecord; TensorFlow is not needed.

    builder = OpenPeeps(data_dir=path, config="32px")
    builder.download_and_prepare()
    source = builder.as_data_source(split="train")

The data card and the style's licence are in `fpjax/training/cards/`.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from pathlib import Path
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from fpjax.training.avatars import render_avatar

NUM_TRAIN = 24_000
NUM_TEST = 2_000
CITATION = "Open Peeps by Pablo Stanley, https://www.openpeeps.com/, CC0 1.0; drawn with DiceBear."


@dataclasses.dataclass
class OpenPeepsConfig(tfds.core.BuilderConfig):
    """Side of the images in pixels, and how many are drawn."""

    resolution: int = 32
    num_train: int = NUM_TRAIN
    num_test: int = NUM_TEST


def _draw(task: tuple[str, int]) -> tuple[str, np.ndarray]:
    seed, resolution = task
    return seed, render_avatar(seed, resolution)


class OpenPeeps(tfds.core.GeneratorBasedBuilder):
    """Faces in ink with varied hair, glasses, beards and clothes, one for each seed."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "24,000 training and 2,000 test avatars on white."}
    BUILDER_CONFIGS: ClassVar = [
        OpenPeepsConfig(name="32px", description="32 x 32 pixels", resolution=32),
        OpenPeepsConfig(name="64px", description="64 x 64 pixels", resolution=64),
    ]

    builder_config: OpenPeepsConfig

    def __init__(self, **kwargs):
        kwargs.setdefault("file_format", "array_record")
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        side = self.builder_config.resolution
        features = {
            # A plain tensor: the Image feature encodes and decodes through TensorFlow.
            "image": tfds.features.Tensor(shape=(side, side, 3), dtype=np.uint8),
            "seed": tfds.features.Text(),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            homepage="https://www.openpeeps.com/",
            citation=CITATION,
            license="CC0 1.0",
            description=self.__doc__,
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        config = self.builder_config
        return {
            "train": self._generate_examples("train", config.num_train),
            "test": self._generate_examples("test", config.num_test),
        }

    def _generate_examples(self, split, count):
        tasks = ((f"{split}-{i}", self.builder_config.resolution) for i in range(count))
        # Spawned, because the parent may already hold XLA threads that a fork would break.
        with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
            yield from (
                (seed, {"image": image, "seed": seed})
                for seed, image in pool.imap_unordered(_draw, tasks, chunksize=64)
            )


def load_open_peeps(
    data_dir: str | Path, split: str = "train", resolution: int = 32, *, builder=None
) -> np.ndarray:
    """Prepares the data set if it is not there yet and returns all images of a split, in order.

    Returns:
      (N, resolution, resolution, 3) uint8, ordered by seed number.
    """
    builder = builder or OpenPeeps(data_dir=os.fspath(data_dir), config=f"{resolution}px")
    builder.download_and_prepare()
    source = builder.as_data_source(split=split)  # pyright: ignore[reportCallIssue]
    images = np.empty((len(source), resolution, resolution, 3), np.uint8)
    for example in source:
        seed = example["seed"]
        seed = seed.decode() if isinstance(seed, bytes) else str(seed)
        images[int(seed.rsplit("-", 1)[1])] = example["image"]
    return images

"""TFDS builder of a robustness study's pictures, stored as ArrayRecord; TensorFlow is not needed.

    builder = AttackedPictures(study="FOLDER", data_dir=path)
    builder.download_and_prepare()
    source = builder.as_data_source(split="test")

`fpjax robustness --out FOLDER` makes the study. With the files as they were sent, the pictures
before that and the keys, others score their own readers on the same pictures, or put their own
marks into the same originals.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from fpjax.errors import InputError
from fpjax.io.images import load_image
from fpjax.studies.robustness_run import pictures_of


class AttackedPictures(tfds.core.GeneratorBasedBuilder):
    """Pictures with keys after attacks and before: files, pixels, users and their keys."""

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES: ClassVar = {
        "1.0.0": "Files, pixels, schemes, attacks and numbers of pictures.",
        "1.1.0": "Users, keys, and the pictures before the attacks.",
    }

    def __init__(self, *, study: str | os.PathLike, **kwargs):
        """Takes the folder of a study.

        Raises:
          InputError: if it holds none, or one of before originals were kept.
          RegistryError: if its users' keys cannot be read.
        """
        self._pictures = pictures_of(Path(study))
        if not self._pictures:
            raise InputError(f"{study}: holds no pictures of a robustness study")
        kwargs.setdefault("file_format", "array_record")
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            # Plain tensors: the Image feature encodes and decodes through TensorFlow.
            "pixels": tfds.features.Tensor(
                shape=(None, None, None), dtype=np.uint8, encoding=tfds.features.Encoding.ZLIB
            ),
            "file": tfds.features.Tensor(shape=(None,), dtype=np.uint8),
            "suffix": tfds.features.Text(),
            "scheme": tfds.features.Text(),
            "attack": tfds.features.Text(),
            "number": tfds.features.Scalar(dtype=np.int64),
            "user": tfds.features.Text(),
            "key": tfds.features.Tensor(shape=(None,), dtype=np.uint8),
            "original": tfds.features.Tensor(
                shape=(None, None, None), dtype=np.uint8, encoding=tfds.features.Encoding.ZLIB
            ),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features), description=self.__doc__
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        return {"test": self._generate_examples()}

    def _generate_examples(self):
        for sent in self._pictures:
            example = {
                "pixels": load_image(sent.file),
                "file": np.frombuffer(sent.file.read_bytes(), np.uint8),
                "suffix": sent.file.suffix,
                "scheme": sent.scheme,
                "attack": sent.attack,
                "number": sent.number,
                "user": sent.user,
                "key": sent.key,
                "original": load_image(sent.original),
            }
            yield f"{sent.scheme}-{sent.attack}-{sent.number:04d}", example

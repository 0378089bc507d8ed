"""Names and folders to models: bundled generators, converted checkpoints, a person's own."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from fpjax import zoo
from fpjax.errors import InputError
from fpjax.models import checkpoint, stylegan2, unet
from fpjax.models.diffusion import DiffusionConfig, DiffusionPrior
from fpjax.models.generator import Generator
from fpjax.models.ldm_generator import FIRST_STAGES, PRIOR, LDMGenerator
from fpjax.models.stylegan2_generator import StyleGAN2Generator


def load_generator(name_or_path: str | os.PathLike) -> StyleGAN2Generator | LDMGenerator:
    """Opens a bundled generator by name, or a folder that `fpjax-convert` or `save` wrote.

    Args:
      name_or_path: "avatars-stylegan2", or a folder. A name that is also a folder means the folder
        only if it contains a path separator.

    Returns:
      The generator, its parameters on the default device in float32: a `StyleGAN2Generator`, or an
      `LDMGenerator` for a first stage, with its prior if the folder has one.

    Raises:
      CheckpointFormatError: if the folder is no checkpoint of a generator, or damaged.
      InputError: for a name that is neither bundled nor a folder.

    >>> load_generator("avatars-stylegan2").image_shape
    (32, 32, 3)
    """
    text = os.fspath(name_or_path)
    path = zoo.model_path(text) if text in zoo.names() else Path(text)
    if not path.exists():
        raise InputError(
            f"{text!r} is neither a bundled generator ({', '.join(zoo.names())}) nor a folder"
        )
    header = checkpoint.read_header(path)
    architecture, info = header["architecture"], header.get("info") or {}
    if architecture == "stylegan2":
        config = checkpoint.config_from_json(stylegan2.StyleGAN2Config, header["config"])
        params = _params(path, stylegan2.param_shapes(config))
        return StyleGAN2Generator.create(path.name, config, params, info)
    if architecture not in FIRST_STAGES:
        advice = "; open it with load_prior" if architecture == "diffusion" else ""
        raise checkpoint.CheckpointFormatError(
            f"{path}: holds a {architecture!r}, expected a generator "
            f"('stylegan2', {', '.join(map(repr, FIRST_STAGES))}){advice}"
        )
    config_class, model = FIRST_STAGES[architecture]
    config = checkpoint.config_from_json(config_class, header["config"])
    params = _params(path, model.param_shapes(config))
    prior = load_prior(path) if (path / PRIOR).is_dir() else None
    if prior is not None and prior.latent_shape[-1] != config.latent_shape[-1]:
        raise checkpoint.CheckpointFormatError(
            f"{path}: the prior draws {prior.latent_shape[-1]} channels and the first stage reads "
            f"{config.latent_shape[-1]}"
        )
    return LDMGenerator.create(path.name, config, params, prior, info)


def load_prior(path: str | os.PathLike) -> DiffusionPrior:
    """Opens the diffusion prior of a converted latent diffusion model, or a converted U-Net.

    Args:
      path: the folder that `fpjax-convert` wrote.

    Returns:
      The prior, its parameters on the default device in float32.

    Raises:
      CheckpointFormatError: if there is no prior in the folder, or it is damaged.

    >>> load_prior("no-such-folder")
    Traceback (most recent call last):
    ...
    fpjax.models.checkpoint.CheckpointFormatError: no-such-folder: no config.json, ...
    """
    path = Path(path)
    folder = path / PRIOR if (path / PRIOR).is_dir() else path
    header = checkpoint.read_header(folder)
    if header["architecture"] != "diffusion":
        raise checkpoint.CheckpointFormatError(
            f"{folder}: holds a {header['architecture']!r} and no prior ('diffusion')"
        )
    config = checkpoint.config_from_json(DiffusionConfig, header["config"])
    return DiffusionPrior(config, _params(folder, unet.param_shapes(config.unet)))


def load_perceptual(path: str | os.PathLike) -> dict[str, Any]:
    """Opens the parameters of a converted perceptual network.

    Args:
      path: the folder that `fpjax-convert` wrote from VGG16, AlexNet, LPIPS or Inception weights.

    Returns:
      The tree that the network's functions in `fpjax.perceptual` take, float32 on the default
      device.

    Raises:
      CheckpointFormatError: if the folder is no such checkpoint, or damaged.

    >>> load_perceptual("no-such-folder")
    Traceback (most recent call last):
    ...
    fpjax.models.checkpoint.CheckpointFormatError: no-such-folder: no config.json, ...
    """
    from fpjax import perceptual

    path = Path(path)
    header = checkpoint.read_header(path)
    if header["architecture"] != "perceptual":
        raise checkpoint.CheckpointFormatError(
            f"{path}: holds a {header['architecture']!r}, expected a perceptual network"
        )
    shapes = {
        "vgg16": perceptual.vgg16_shapes,
        "alexnet": perceptual.alexnet_shapes,
        "inception": perceptual.inception_shapes,
        "lpips": lambda: perceptual.lpips_shapes(header["config"].get("net", "vgg")),
    }
    network = header["config"].get("network")
    if network not in shapes:
        raise checkpoint.CheckpointFormatError(
            f"{path}: perceptual network {network!r}, expected one of {', '.join(shapes)}"
        )
    return _params(path, shapes[network]())


def load_custom(reference: str) -> Generator:
    """Makes a person's own generator: calls the function that a reference names.

    Args:
      reference: "FILE.py:FUNCTION" or "package.module:FUNCTION"; the function takes nothing and
        returns a `fpjax.Generator`. Its file is executed: name only what you trust.

    Raises:
      InputError: if there is no such function, or it returns something else.

    >>> load_custom("os:getcwd")
    Traceback (most recent call last):
    ...
    fpjax.errors.InputError: os:getcwd returned str, expected a fpjax.Generator
    """
    source, _, function = reference.rpartition(":")
    if not source:
        raise InputError(f"{reference!r}: expected FILE.py:FUNCTION or package.module:FUNCTION")
    try:
        if source.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(source).stem, source)
            if spec is None or spec.loader is None:
                raise ImportError("is no Python file")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(source)
        make = getattr(module, function)
    except (ImportError, FileNotFoundError, AttributeError) as error:
        raise InputError(f"{reference}: {error}") from error
    generator = make()
    if not isinstance(generator, Generator):
        raise InputError(
            f"{reference} returned {type(generator).__name__}, expected a fpjax.Generator"
        )
    return generator


def _params(path: Path, shapes: Mapping[str, Any]) -> dict[str, Any]:
    return jax.tree.map(jnp.asarray, checkpoint.load_params(path, shapes))

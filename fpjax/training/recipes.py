"""The recipes that bundled models are trained with, by the name of the model."""

from __future__ import annotations

import dataclasses

from fpjax.models.stylegan2 import StyleGAN2Config
from fpjax.training.gan import GANConfig

AVATARS_STYLEGAN2 = StyleGAN2Config(
    resolution=32,
    z_dim=512,
    w_dim=512,
    num_mapping_layers=6,
    channels=((4, 128), (8, 128), (16, 96), (32, 48)),
)

RECIPES: dict[str, GANConfig] = {
    "avatars-stylegan2": GANConfig(
        model=AVATARS_STYLEGAN2,
        critic_channels=((4, 128), (8, 128), (16, 96), (32, 32)),
        total_images=230_000,
    ),
}


def with_length(config: GANConfig, total_images: int) -> GANConfig:
    """The same recipe, shorter or longer; the learning rate decays over its final part."""
    return dataclasses.replace(config, total_images=total_images)

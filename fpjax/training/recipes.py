"""The recipes that bundled models are trained with, by name of the model or of its part."""

from __future__ import annotations

import dataclasses

from fpjax.models.autoencoder import AutoencoderConfig
from fpjax.models.diffusion import DiffusionConfig
from fpjax.models.stylegan2 import StyleGAN2Config
from fpjax.models.unet import UNetConfig
from fpjax.training.first_stage import FirstStageConfig
from fpjax.training.gan import GANConfig
from fpjax.training.latent_prior import PriorConfig

Recipe = GANConfig | FirstStageConfig | PriorConfig

AVATARS_STYLEGAN2 = StyleGAN2Config(
    resolution=32,
    z_dim=512,
    w_dim=512,
    num_mapping_layers=6,
    channels=((4, 128), (8, 128), (16, 96), (32, 48)),
)

AVATARS_FIRST_STAGE = AutoencoderConfig(
    ch=16,
    ch_mult=(1, 2, 4),
    num_res_blocks=1,
    resolution=64,
    n_embed=1024,
    double_z=False,
    norm_groups=8,
)

AVATARS_PRIOR = DiffusionConfig(
    UNetConfig(
        image_size=16,
        model_channels=48,
        channel_mult=(1, 2, 3),
        num_res_blocks=1,
        attention_resolutions=(2, 4),
        num_head_channels=24,
        norm_groups=12,
    )
)

RECIPES: dict[str, Recipe] = {
    "avatars-stylegan2": GANConfig(
        model=AVATARS_STYLEGAN2,
        critic_channels=((4, 128), (8, 128), (16, 96), (32, 32)),
        total_images=230_000,
    ),
    "avatars-ldm-first-stage": FirstStageConfig(AVATARS_FIRST_STAGE, total_images=40_000),
    "avatars-ldm-prior": PriorConfig(AVATARS_PRIOR, total_images=160_000),
}


def with_length(config: Recipe, total_images: int) -> Recipe:
    """The same recipe, shorter or longer; the learning rate decays over its final part."""
    return dataclasses.replace(config, total_images=total_images)

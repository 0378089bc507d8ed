"""diffusers models with random weights, run there and here: the same numbers come out."""

import functools
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from checkpoints_convert.detect import recognise
from checkpoints_convert.publishers.diffusers_autoencoder import (
    AutoencoderOptions,
    convert_autoencoder,
    convert_autoencoder_tiny,
)
from checkpoints_convert.publishers.diffusers_unet import convert_unet
from checkpoints_convert.request import Request
from checkpoints_convert.table import ConversionError
from fpjax.models import autoencoder, autoencoder_tiny, diffusion, unet
from tests.reference import relative_error

# Float32 sums in another order; the bound of every parity test in this project.
PARITY = 1e-4

UNET_BASE = {
    "sample_size": 8,
    "block_out_channels": [32, 64],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}
AUTOENCODER_BASE = {
    "sample_size": 16,
    "block_out_channels": [16, 32],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
    "up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
}


def original(name, config):
    """A diffusers model whose every tensor is random, with its state dict and config."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = getattr(diffusers, name)(**config).eval()
    with torch.no_grad():
        # Biases and norms are not left at 0 and 1, where a mix-up would not show.
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    # Through JSON, as from a file.
    return model, model.state_dict(), json.loads(json.dumps(dict(model.config)))


def images(*shape):
    return np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)


def nchw(x):
    import torch

    return torch.from_numpy(np.ascontiguousarray(np.transpose(x, (0, 3, 1, 2))))


def nhwc(x):
    return np.transpose(x.detach().numpy(), (0, 2, 3, 1))


def run(function, config, params, *arrays, **options):
    return jax.jit(functools.partial(function, config, **options))(params, *arrays)


@pytest.mark.parametrize(
    "options",
    [
        {"attention_head_dim": 16},
        {"attention_head_dim": None, "flip_sin_to_cos": False, "freq_shift": 1},
        {
            "downsample_padding": 0,
            "resnet_time_scale_shift": "scale_shift",
            "attn_norm_num_groups": 8,
            "norm_eps": 1e-3,
            "in_channels": 4,
            "out_channels": 4,
            "block_out_channels": [32, 48],
        },
    ],
)
def test_unet(options):
    model, tensors, config = original("UNet2DModel", UNET_BASE | options)
    conversion = convert_unet(tensors, config)
    x, t = images(2, 8, 8, config["in_channels"]), np.asarray([3, 801], np.int32)
    import torch

    expected = nhwc(model(nchw(x), torch.from_numpy(t)).sample)
    eps = run(unet.denoise, conversion.config.unet, conversion.plan.apply(), x, t)
    assert relative_error(eps, expected) < PARITY


def test_autoencoder_kl():
    options = {"latent_channels": 4, "scaling_factor": 0.3, "shift_factor": 0.2}
    model, tensors, config = original("AutoencoderKL", AUTOENCODER_BASE | options)
    conversion = convert_autoencoder(tensors, config)
    params, x = conversion.plan.apply(), images(2, 16, 16, 3)
    mean = nhwc(model.encode(nchw(x)).latent_dist.mean)
    z = run(autoencoder.encode, conversion.config, params, x)
    assert relative_error(z, (mean - 0.2) * 0.3) < PARITY
    decoded = run(autoencoder.decode, conversion.config, params, z)
    assert relative_error(decoded, nhwc(model.decode(nchw(mean)).sample)) < PARITY


@pytest.mark.parametrize("quantize", [True, False])
def test_vq_model(quantize):
    options = {"latent_channels": 3, "vq_embed_dim": 5, "num_vq_embeddings": 32}
    model, tensors, config = original("VQModel", AUTOENCODER_BASE | options)
    conversion = convert_autoencoder(tensors, config, AutoencoderOptions(scale_factor=1.0))
    params, x = conversion.plan.apply(), images(2, 16, 16, 3)
    latents = nhwc(model.encode(nchw(x)).latents)
    z = run(autoencoder.encode, conversion.config, params, x)
    assert relative_error(z, latents) < PARITY
    expected = model.decode(nchw(latents), force_not_quantize=not quantize).sample
    decoded = run(autoencoder.decode, conversion.config, params, latents, quantize=quantize)
    assert relative_error(decoded, nhwc(expected)) < PARITY


def test_autoencoder_tiny():
    sizes = {
        "encoder_block_out_channels": [16, 16],
        "decoder_block_out_channels": [16, 16],
        "num_encoder_blocks": [1, 2],
        "num_decoder_blocks": [2, 1],
    }
    model, tensors, config = original("AutoencoderTiny", {"latent_channels": 6} | sizes)
    conversion = convert_autoencoder_tiny(tensors, config)
    params, x = conversion.plan.apply(), images(2, 16, 16, 3)
    latents = nhwc(model.encode(nchw(x)).latents)
    assert (
        relative_error(run(autoencoder_tiny.encode, conversion.config, params, x), latents) < PARITY
    )
    decoded = run(autoencoder_tiny.decode, conversion.config, params, latents)
    assert relative_error(decoded, nhwc(model.decode(nchw(latents)).sample)) < PARITY


def test_names_of_old_files():
    _, tensors, config = original("AutoencoderKL", AUTOENCODER_BASE)
    new_to_old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for name, tensor in tensors.items():
        for new, former in new_to_old.items():
            name = name.replace(f".{new}.", f".{former}.")
        old[name] = tensor
    assert old.keys() != tensors.keys()
    converted = (convert_autoencoder(t, config).plan.apply() for t in (tensors, old))
    assert jax.tree.all(jax.tree.map(np.array_equal, *converted))


def test_scheduler_gives_the_schedule_that_diffusers_computes():
    diffusers = pytest.importorskip("diffusers")
    _, tensors, config = original("UNet2DModel", UNET_BASE)
    for schedule in ("linear", "scaled_linear", "squaredcos_cap_v2"):
        scheduler = diffusers.DDIMScheduler(
            beta_schedule=schedule, beta_start=0.0015, beta_end=0.0195
        )
        conversion = convert_unet(
            tensors, config, {**scheduler.config, "_class_name": "DDIMScheduler"}
        )
        assert conversion.architecture == "diffusion"
        # Computed there in float32, over 1000 factors.
        np.testing.assert_allclose(
            conversion.config.alphas_cumprod, scheduler.alphas_cumprod, rtol=1e-3, atol=1e-7
        )
    prior = diffusion.DiffusionPrior(conversion.config, conversion.plan.apply())
    key = jax.random.key(0)
    assert jnp.isfinite(diffusion.ddim_sample(prior, prior.params, key, 1, 2)).all()


def test_published_vq_first_stages_are_not_scaled():
    # LDM's first stages were trained unscaled; their configs predate the setting.
    _, tensors, config = original("VQModel", AUTOENCODER_BASE)
    assert convert_autoencoder(tensors, config).notes[0].startswith("scale_factor 0.18215")
    del config["scaling_factor"]
    conversion = convert_autoencoder(tensors, config)
    assert conversion.config.scale_factor == 1.0 and "assumed" in conversion.notes[0]


def test_models_are_told_apart_by_class_name(tmp_path):
    for name, base, architecture in [
        ("AutoencoderKL", AUTOENCODER_BASE, "autoencoder"),
        ("VQModel", AUTOENCODER_BASE, "autoencoder"),
        ("UNet2DModel", UNET_BASE, "diffusion"),
        ("AutoencoderTiny", {}, "autoencoder_tiny"),
    ]:
        model, _, _ = original(name, base)
        model.save_pretrained(tmp_path / name)
        source = recognise(tmp_path / name, Request())
        assert [part.architecture for part in source.parts] == [architecture]


@pytest.mark.parametrize(
    ("function", "config", "message"),
    [
        (convert_unet, {"time_embedding_type": "fourier"}, "time_embedding_type = 'fourier'"),
        (convert_unet, {"down_block_types": ["SkipDownBlock2D"]}, "block type SkipDownBlock2D"),
        (convert_unet, {"down_block_types": ["DownBlock2D"] * 4}, "attention on other levels"),
        (convert_unet, {"block_out_channels": [32]}, "4 blocks down, 4 up and 1 channel"),
        (convert_unet, {"attn_norm_num_groups": 4}, "attn_norm_num_groups = 4"),
        (convert_unet, {"time_embedding_dim": 7}, "time_embedding_dim = 7"),
        (convert_unet, {"sample_size": [8, 16]}, "square images"),
        (convert_autoencoder, {"latents_mean": [0.0]}, "latents_mean"),
        (convert_autoencoder_tiny, {"act_fn": "silu"}, "act_fn = 'silu'"),
        (convert_autoencoder_tiny, {"decoder_block_out_channels": [8] * 4}, "one width for all"),
        (convert_autoencoder, {}, r"no tensor quant_conv\.weight"),
    ],
)
def test_what_fpjax_lacks_is_refused_by_name(function, config, message):
    with pytest.raises(ConversionError, match=message):
        function({}, config)


def test_priors_that_predict_something_else_are_refused():
    _, tensors, config = original("UNet2DModel", UNET_BASE)
    with pytest.raises(ConversionError, match="prediction_type = 'v_prediction'"):
        convert_unet(
            tensors, config, {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}
        )

"""CompVis checkpoints: whole LDMs, averaged weights, and every misfit refused by name."""

import numpy as np
import pytest

from checkpoints_convert.publishers import compvis, compvis_first_stage, compvis_unet
from checkpoints_convert.publishers.compvis import WholeOptions
from checkpoints_convert.publishers.compvis_first_stage import FirstStageOptions
from checkpoints_convert.publishers.compvis_unet import UNetOptions
from checkpoints_convert.table import ConversionError, flatten, select
from fpjax.models import diffusion
from tests.reference import fixture

HEADS = UNetOptions(num_head_channels=16)


def state_dict(name):
    return select(dict(np.load(fixture(name), allow_pickle=False)), "sd/")


@pytest.fixture(scope="module")
def first_stage():
    return state_dict("compvis_vq_f4_small_random.npz")


@pytest.fixture(scope="module")
def unet():
    return state_dict("compvis_unet_small_random.npz")


def averaged(unet):
    """The names that LDM's averaging stores: every dot gone but the first."""
    return {
        "model_ema." + f"diffusion_model.{name}".replace(".", ""): tensor
        for name, tensor in unet.items()
    }


@pytest.fixture
def whole(first_stage, unet):
    alphas = diffusion.alphas_cumprod(1000).astype(np.float32)
    betas = np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2
    return {
        **{f"first_stage_model.{name}": tensor for name, tensor in first_stage.items()},
        **{f"model.diffusion_model.{name}": tensor for name, tensor in unet.items()},
        **{name: 2 * tensor for name, tensor in averaged(unet).items()},
        "model_ema.decay": np.float32(0.9999),
        "model_ema.num_updates": np.int32(7),
        "betas": betas.astype(np.float32),
        "alphas_cumprod": alphas,
        "alphas_cumprod_prev": np.append(1, alphas[:-1]),
        "posterior_mean_coef2": alphas,
        "logvar": alphas,
        "scale_factor": np.float32(0.22765929),
        "first_stage_model.loss.logvar": np.zeros(()),
    }


def convert(tensors, **options):
    settings = WholeOptions(resolution=32, num_head_channels=16)
    return compvis.convert_ldm(tensors, settings, **options)


def test_a_whole_checkpoint_gives_both_models_and_their_configs(whole, unet):
    conversion = convert(whole)
    stage, prior = conversion.config["autoencoder"], conversion.config["diffusion"]
    assert (stage.n_embed, stage.scale_factor) == (128, 0.22765929)
    assert (prior.linear_start, prior.linear_end) == (0.0015, 0.0195)
    assert prior.beta_schedule == "sqrt_linear" and prior.latent_shape == (8, 8, 3)
    params = conversion.plan.apply()
    assert params["autoencoder"]["codebook"].shape == (128, 3)
    # The averaged weights, which the fixture made twice the raw ones.
    np.testing.assert_array_equal(params["diffusion"]["conv_out"]["bias"], 2 * unet["out.2.bias"])
    assert any("averaged (EMA) weights are used" in note for note in conversion.notes)
    assert any("16 channels a head is taken" in note for note in conversion.notes)


def test_every_tensor_is_used_once_or_ignored_with_a_reason(whole):
    plan = convert(whole).plan
    used = {step.source for step in plan.steps}
    ignored = dict(plan.ignored)
    assert not used & ignored.keys() and used | ignored.keys() == whole.keys()
    assert all(ignored.values())
    sizes = {name: np.size(tensor) for name, tensor in whole.items()}
    assert sum(np.prod(step.shape) for step in plan.steps) == sum(sizes[name] for name in used)


def test_raw_weights_on_request_or_where_there_are_no_others(whole, unet):
    raw = convert(whole, use_ema=False).plan.apply()["diffusion"]
    np.testing.assert_array_equal(raw["conv_out"]["bias"], unet["out.2.bias"])
    pruned = {name: t for name, t in whole.items() if not name.startswith("model_ema.")}
    conversion = convert(pruned)
    assert any("no averaged" in note for note in conversion.notes)
    only_averaged = {n: t for n, t in whole.items() if not n.startswith("model.diffusion_model.")}
    left = flatten(convert(only_averaged).plan.apply()["diffusion"])
    for name, value in flatten(raw).items():
        np.testing.assert_array_equal(left[name], 2 * value)


def test_fused_projections_split_by_head(unet):
    # Per head: queries, keys, values; 64 channels in heads of 16, or all queries first.
    name = "middle_block.1.qkv"
    weight, bias = unet[f"{name}.weight"][..., 0], unet[f"{name}.bias"]
    params = compvis_unet.convert_unet(unet, HEADS).plan.apply()["mid"]["attn_1"]
    for head in range(4):
        for i, part in enumerate("qkv"):
            rows = slice(48 * head + 16 * i, 48 * head + 16 * i + 16)
            ours = slice(16 * head, 16 * head + 16)
            np.testing.assert_array_equal(params[part]["weight"][:, ours], weight[rows].T)
            np.testing.assert_array_equal(params[part]["bias"][ours], bias[rows])
    new = compvis_unet.convert_unet(
        unet, UNetOptions(num_head_channels=16, new_attention_order=True)
    )
    params = new.plan.apply()["mid"]["attn_1"]
    np.testing.assert_array_equal(params["k"]["weight"], weight[64:128].T)


def test_unet_architecture_is_inferred(unet):
    config = compvis_unet.infer_config(unet, HEADS)
    assert config.channels == (32, 64, 64)
    assert config.attention_resolutions == (2, 4)
    assert (config.num_res_blocks, config.use_scale_shift_norm) == (1, False)


def test_decoder_without_encoder_is_inferred_with_its_attention():
    tensors = state_dict("compvis_kl_f4_tiny_random.npz")
    conversion = compvis_first_stage.convert_autoencoder(tensors, FirstStageOptions(resolution=32))
    config = conversion.config
    assert not config.has_encoder and config.attn_resolutions == (8,) and config.n_embed is None
    assert (config.channels, config.num_res_blocks) == ((32, 64, 64), 1)
    assert any("no encoder" in note for note in conversion.notes)


def test_training_loss_is_ignored_and_anything_else_refused(first_stage):
    plan = compvis_first_stage.convert_autoencoder(
        {**first_stage, "loss.discriminator.main.0.weight": np.zeros(1)}
    ).plan
    assert [name for name, _ in plan.ignored] == ["loss.discriminator.main.0.weight"]
    with pytest.raises(ConversionError, match="no rule for source tensor decoder"):
        compvis_first_stage.convert_autoencoder({**first_stage, "decoder.extra": np.zeros(1)})
    missing = {k: v for k, v in first_stage.items() if k != "decoder.mid.attn_1.q.bias"}
    with pytest.raises(ConversionError, match="nothing fills parameter decoder/mid/attn_1/q/bias"):
        compvis_first_stage.convert_autoencoder(missing)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cond_stage_model.x": np.zeros(1)}, "a conditional model"),
        ({"surprise": np.zeros(1)}, "no rule for source tensor surprise"),
        ({"alphas_cumprod": np.linspace(0.9, 0.1, 1000)}, "is no linear"),
        ({"alphas_cumprod": None}, "schedule is unknown"),
        ({"model_ema.diffusion_modelnonsense": np.zeros(1)}, "no rule for source tensor"),
    ],
)
def test_what_does_not_fit_a_whole_model_is_named(whole, change, message):
    tensors = {k: v for k, v in {**whole, **change}.items() if v is not None}
    with pytest.raises(ConversionError, match=message):
        convert(tensors)


def test_other_unets_are_named(unet):
    with pytest.raises(ConversionError, match="a conditional U-Net"):
        compvis_unet.convert_unet({**unet, "label_emb.weight": np.zeros(1)})
    inside = {k.replace(".op.", ".0.in_layers."): v for k, v in unet.items()}
    with pytest.raises(ConversionError):
        compvis_unet.convert_unet(inside)


@pytest.mark.parametrize("name", ["linear", "cosine", "sqrt_linear"])
def test_every_named_schedule_is_recognised(whole, name):
    alphas = diffusion.alphas_cumprod(1000, name, 1e-4, 0.02)
    whole.pop("betas")
    found = convert({**whole, "alphas_cumprod": alphas.astype(np.float32)}).config["diffusion"]
    assert found.beta_schedule == name
    np.testing.assert_allclose(found.alphas_cumprod, alphas, rtol=1e-4, atol=1e-7)

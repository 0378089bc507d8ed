"""CompVis files of other makers: averages, names and channels, converted right or refused."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import fpjax
from checkpoints_convert.command import run
from checkpoints_convert.detect import recognise
from checkpoints_convert.request import Request
from checkpoints_convert.table import ConversionError
from fpjax.models import diffusion
from tests.checkpoints_convert.foreign import converted, fixture_arrays, nhwc, same
from tests.reference import relative_error

BOUND = 1e-4  # of the output's standard deviation: float32 sums in another order
HEADS = {"num_head_channels": 16, "resolution": 32}


@pytest.fixture(scope="module")
def stage():
    return fixture_arrays("compvis_vq_f4_small_random.npz")


@pytest.fixture(scope="module")
def unet():
    return fixture_arrays("compvis_unet_small_random.npz")


@pytest.fixture(scope="module")
def kl():
    return fixture_arrays("compvis_kl_f4_tiny_random.npz")


def saved(path, state):
    """A flat file of arrays; as safetensors, whose names may hold anything."""
    from safetensors.numpy import save_file

    save_file({name: np.array(value) for name, value in state.items()}, path)
    return path


def refused(path, **request):
    with pytest.raises(ConversionError) as error:
        recognise(path, Request(**request))
    message = str(error.value)
    assert "\n" not in message and len(message) < 600
    return message


def dotless(state, start):
    return {start + name.replace(".", ""): 3 * value for name, value in state.items()}


@pytest.mark.parametrize("prefix", ["", "model.", "model.diffusion_model."])
@pytest.mark.parametrize("start", ["model_ema.", "model_ema.diffusion_model"])
def test_averages_of_a_unet_are_found_whatever_module_they_were_named_in(
    tmp_path, unet, prefix, start
):
    raw = {prefix + name: value for name, value in unet[0].items()}
    counters = {"model_ema.decay": np.float32(0.9), "model_ema.num_updates": np.int32(3)}
    both = saved(tmp_path / "m.safetensors", raw | dotless(unet[0], start) | counters)
    tripled = {name: 3 * value for name, value in unet[0].items()}
    expected = converted(saved(tmp_path / "e.safetensors", tripled), options=HEADS)
    same(converted(both, options=HEADS), expected)
    assert any("averaged" in note for note in recognise(both, Request(options=HEADS)).notes)
    plain = converted(saved(tmp_path / "r.safetensors", unet[0]), options=HEADS)
    same(converted(both, options=HEADS, weights="raw"), plain)


def test_averages_of_some_tensors_or_of_no_name_are_not_passed_over(tmp_path, unet):
    raw = {f"model.{name}": value for name, value in unet[0].items()}
    some = dict(list(dotless(unet[0], "model_ema.").items())[:20])
    path = saved(tmp_path / "s.safetensors", raw | some)
    assert "averages of some of the U-Net's tensors only" in refused(path, options=HEADS)
    path = saved(tmp_path / "n.safetensors", raw | {"model_ema.shadow_0": np.ones((2, 2), "f4")})
    assert "raw weights beside averages" in refused(path, options=HEADS)
    converted(path, options=HEADS, weights="raw")


def test_a_first_stage_beside_averages_says_which_it_takes(tmp_path, stage):
    averages = {"model_ema.decoderconv_inweight": np.ones((2, 2), "f4")}
    path = saved(tmp_path / "s.safetensors", stage[0] | averages)
    notes = recognise(path, Request()).notes
    assert any("raw weights are used" in note and "averages" in note for note in notes)


def wider(state, inputs, outputs):
    """The same U-Net with other channels at its two ends."""
    first, last = "input_blocks.0.0.weight", "out.2.weight"
    state = dict(state)
    state[first] = np.resize(state[first], (state[first].shape[0], inputs, 3, 3))
    state[last] = np.resize(state[last], (outputs, *state[last].shape[1:]))
    state["out.2.bias"] = np.zeros(outputs, "f4")
    return state


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        (6, 3, "reads 6 channels and predicts 3: a conditional model"),
        (3, 6, "it learned the variance too"),
        (4, 4, "reads 4 channels and the latent has 3"),
    ],
)
def test_channels_of_a_prior_fit_its_latent(tmp_path, stage, unet, inputs, outputs, message):
    other = wider(unet[0], inputs, outputs)
    whole = {f"first_stage_model.{name}": value for name, value in stage[0].items()}
    whole |= {f"model.diffusion_model.{name}": value for name, value in other.items()}
    whole["alphas_cumprod"] = diffusion.alphas_cumprod().astype("f4")
    assert message in refused(saved(tmp_path / "w.safetensors", whole), options=HEADS)
    if inputs != outputs:
        assert message in refused(saved(tmp_path / "u.safetensors", other), options=HEADS)


def test_a_unet_beside_a_conditioner_is_conditional(tmp_path, unet):
    state = {f"model.diffusion_model.{name}": value for name, value in unet[0].items()}
    state["cond_stage_model.embedding.weight"] = np.ones((2, 2), "f4")
    message = refused(saved(tmp_path / "c.safetensors", state), options=HEADS)
    assert "a conditional model" in message


def renamed_attention(state):
    """As diffusers names attention: apart, as linear layers."""
    out = {}
    for name, value in state.items():
        if ".qkv." in name:
            # Three projections of each head together: of 16 channels here.
            channels = value.shape[0] // 3
            by_head = value.reshape(channels // 16, 3, 16, *value.shape[1:])
            for i, part in enumerate("qkv"):
                own = by_head[:, i].reshape(channels, *value.shape[1:])
                own = own[..., 0] if own.ndim == 3 else own
                out[name.replace(".qkv.", f".to_{part}.")] = own
            continue
        attention = ".attn" in name or name.replace("proj_out", "qkv") in state
        if attention:
            new = name
            for old, theirs in (
                ("q", "to_q"),
                ("k", "to_k"),
                ("v", "to_v"),
                ("proj_out", "to_out.0"),
            ):
                new = new.replace(f".{old}.weight", f".{theirs}.weight")
                new = new.replace(f".{old}.bias", f".{theirs}.bias")
            if new != name and value.ndim > 2:
                value = value.reshape(value.shape[:2])
            name = new
        out[name] = value
    assert out.keys() != state.keys()
    return out


def test_attention_under_diffusers_names(tmp_path, stage, unet):
    plain = converted(saved(tmp_path / "s.safetensors", stage[0]))
    same(converted(saved(tmp_path / "sr.safetensors", renamed_attention(stage[0]))), plain)
    plain = converted(saved(tmp_path / "u.safetensors", unet[0]), options=HEADS)
    path = saved(tmp_path / "ur.safetensors", renamed_attention(unet[0]))
    same(converted(path, options=HEADS), plain)
    message = refused(path, options={**HEADS, "new_attention_order": True})
    assert "--new-attention-order has no meaning" in message


def test_a_codebook_that_was_remapped(tmp_path, stage):
    plain = converted(saved(tmp_path / "s.safetensors", stage[0]))
    path = saved(tmp_path / "u.safetensors", stage[0] | {"quantize.used": np.arange(9)})
    same(converted(path), plain)
    assert "quantize.used" in dict(recognise(path, Request()).ignored)


def test_a_gumbel_codebook_is_named(tmp_path, stage):
    state = {n: v for n, v in stage[0].items() if not n.startswith("quantize.")}
    state |= {"quantize.embed.weight": np.ones((8, 3), "f4")}
    state |= {"quantize.proj.weight": np.ones((8, 3, 1, 1), "f4")}
    assert "Gumbel" in refused(saved(tmp_path / "g.safetensors", state))


@pytest.mark.parametrize("prefix", ["", "first_stage_model.", "vae."])
def test_first_stages_without_quant_convolutions(tmp_path, kl, prefix):
    """FLUX and SD3: the same numbers as with identities there."""
    state, arrays = kl
    channels = state["post_quant_conv.weight"].shape[0]
    bare = {n: v for n, v in state.items() if not n.startswith(("post_quant_conv", "quant_conv"))}
    transformer = {"model.diffusion_model.joint_blocks.0.x.weight": np.ones((2, 2), "f4")}
    file = {prefix + name: value for name, value in bare.items()} | (transformer if prefix else {})
    path = saved(tmp_path / "ae.safetensors", file)
    flags = ["--scale-factor=0.3611", "--shift-factor=0.1159"]
    assert run([str(path), str(tmp_path / "out"), *flags]) == 0
    generator = fpjax.load_generator(tmp_path / "out")
    identity = np.eye(channels, dtype="f4")[..., None, None]
    with_identity = bare | {
        "post_quant_conv.weight": identity,
        "post_quant_conv.bias": np.zeros(channels, "f4"),
    }
    expected = converted(saved(tmp_path / "i.safetensors", with_identity))
    same(converted(path), expected)
    assert any("the identity" in note for note in generator.info["notes"])
    config = generator.config
    assert (config.scale_factor, config.shift_factor) == (0.3611, 0.1159)
    z = jnp.asarray(nhwc(arrays["z"]))
    plain = dataclasses.replace(config, scale_factor=1.0, shift_factor=0.0)
    from fpjax.models import autoencoder

    images = generator.decode(generator.params, (z - 0.1159) * 0.3611)
    assert relative_error(images, autoencoder.decode(plain, generator.params, z)) <= BOUND


@pytest.mark.parametrize(
    ("file", "options", "flag"),
    [
        ("stage", {"num_heads": 8}, "--num-heads"),
        ("stage", {"mapping_lr_multiplier": 0.1}, "--mapping-lr-multiplier"),
        ("unet", {"scale_factor": 2.0}, "--scale-factor"),
        ("unet", {"shift_factor": 2.0}, "--shift-factor"),
        ("unet", {"mapping_lr_multiplier": 0.1}, "--mapping-lr-multiplier"),
    ],
)
def test_flags_without_effect_on_these_files(tmp_path, stage, unet, file, options, flag):
    path = saved(tmp_path / "f.safetensors", (stage if file == "stage" else unet)[0])
    assert f"{flag} has no meaning for" in refused(path, options=options)


def test_a_scale_that_the_file_states_is_not_overridden_in_silence(tmp_path, stage, unet):
    whole = {f"first_stage_model.{name}": value for name, value in stage[0].items()}
    whole |= {f"model.diffusion_model.{name}": value for name, value in unet[0].items()}
    whole |= {"alphas_cumprod": diffusion.alphas_cumprod().astype("f4")}
    whole |= {"scale_factor": np.float32(0.5)}
    path = saved(tmp_path / "w.safetensors", whole)
    message = refused(path, options={**HEADS, "scale_factor": 2.0})
    assert "--scale-factor has no meaning for latent diffusion, CompVis that states its" in message
    source = recognise(path, Request(options=HEADS))
    assert source.parts[0].config["scale_factor"] == 0.5
    integer = saved(tmp_path / "i.safetensors", whole | {"scale_factor": np.int64(2)})
    assert recognise(integer, Request(options=HEADS)).parts[0].config["scale_factor"] == 2
    first = {name: value for name, value in whole.items() if not name.startswith("model.")}
    path = saved(tmp_path / "s.safetensors", first)
    assert recognise(path, Request()).parts[0].config["scale_factor"] == 0.5
    assert "that states its own" in refused(path, options={"scale_factor": 2.0})


def test_heads_are_stated_in_one_way(tmp_path, unet):
    path = saved(tmp_path / "u.safetensors", unet[0])
    message = refused(path, options={"num_heads": 2, "num_head_channels": 16})
    assert "give one of them" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {params: {parameterization: v, unet_config: {params: {num_heads: 2}}}}", "= 'v'"),
        ("model: {params: {timesteps: 99999999, unet_config: {params: {a: 1}}}}", "timesteps ="),
        ("model: {params: {linear_start: [1], unet_config: {params: {a: 1}}}}", "linear_start ="),
        ("model: {params: {unet_config: {params: {num_head_channels: yes}}}}", "= True: expected"),
        ("model: {params: {beta_schedule: sqrt, unet_config: {params: {a: 1}}}}", "= 'sqrt'"),
        ("model: {params: {unet_config: {params: {num_heads: 1" + "0" * 400 + "}}}}", "an int of"),
    ],
)
def test_values_of_a_config_are_checked_before_they_are_used(tmp_path, unet, text, message):
    path = saved(tmp_path / "u.safetensors", unet[0])
    (tmp_path / "config.yaml").write_text(text)
    assert message in refused(path, config=tmp_path / "config.yaml")


@pytest.mark.parametrize("shape", [(), (1000, 1), (0,), (200_000,)])
def test_a_schedule_of_another_shape(tmp_path, unet, shape):
    for name in ("alphas_cumprod", "betas"):
        state = unet[0] | {name: np.full(shape, 0.5, "f4")}
        path = saved(tmp_path / f"{name}.safetensors", state)
        assert f"{name} has shape" in refused(path, options=HEADS)

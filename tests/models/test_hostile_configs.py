"""Numbers of a stranger's config.json are checked before anything is built from them."""

import json
import time

import pytest

import fpjax
from fpjax.models import checkpoint
from fpjax.models.autoencoder import AutoencoderConfig
from fpjax.models.autoencoder_tiny import AutoencoderTinyConfig
from fpjax.models.diffusion import DiffusionConfig
from fpjax.models.stylegan2 import StyleGAN2Config
from fpjax.models.unet import UNetConfig

CONFIGS = {
    "stylegan2": StyleGAN2Config(32, channels=tuple((4 * 2**i, 8) for i in range(4))),
    "autoencoder": AutoencoderConfig.vq_f4(),
    "autoencoder_tiny": AutoencoderTinyConfig.taesd(),
    "diffusion": DiffusionConfig.ldm_ffhq256(),
}
HUGE = [
    ("stylegan2", "num_mapping_layers", 10**8),
    ("stylegan2", "z_dim", 10**400),
    ("stylegan2", "fir", [1.0] * 100_000),
    ("stylegan2", "channels", [[4, 10**9], [8, 8], [16, 8], [32, 8]]),
    ("autoencoder", "num_res_blocks", 10**8),
    ("autoencoder", "ch_mult", [1] * 100_000),
    ("autoencoder", "ch", 2**40),
    ("autoencoder", "n_embed", 10**18),
    ("autoencoder", "scale_factor", 10**400),
    ("autoencoder_tiny", "decoder_blocks", [3, 3, 3, 10**9]),
    ("autoencoder_tiny", "resolution", 2**60),
    ("diffusion", "num_timesteps", 10**12),
]


def folder(path, architecture, config):
    path.mkdir()
    header = checkpoint.header(architecture, config)
    (path / "config.json").write_text(json.dumps(header))
    return path


@pytest.mark.parametrize(("architecture", "name", "value"), HUGE)
def test_a_number_that_would_exhaust_the_machine_is_refused_at_once(
    tmp_path, architecture, name, value
):
    config = checkpoint.config_to_json(CONFIGS[architecture]) | {name: value}
    path = folder(tmp_path / "m", architecture, config)
    load = fpjax.load_prior if architecture == "diffusion" else fpjax.load_generator
    start = time.monotonic()
    with pytest.raises(checkpoint.CheckpointFormatError, match=r"config\.json does not") as error:
        load(path)
    assert time.monotonic() - start < 1 and len(str(error.value)) < 1000


WRONG = [
    None,
    True,
    "",
    "8",
    -1,
    0,
    1.5,
    [],
    [[]],
    {},
    10**400,
    float("inf"),
    float("nan"),
    "x" * 99,
]


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_field_of_another_type_is_a_format_error_and_nothing_else(tmp_path, architecture):
    load = fpjax.load_prior if architecture == "diffusion" else fpjax.load_generator
    good = checkpoint.config_to_json(CONFIGS[architecture])
    count = 0
    for name in good:
        for value in WRONG:
            count += 1
            path = folder(tmp_path / str(count), architecture, good | {name: value})
            # A field that admits the value goes on to the missing parameters: the same error.
            with pytest.raises(checkpoint.CheckpointFormatError):
                load(path)


def test_nor_is_a_field_of_the_denoiser_inside(tmp_path):
    good = checkpoint.config_to_json(CONFIGS["diffusion"])
    for name in good["unet"]:
        for value in WRONG:
            config = good | {"unet": good["unet"] | {name: value}}
            with pytest.raises(checkpoint.CheckpointFormatError):
                checkpoint.config_from_json(DiffusionConfig, config)
                raise checkpoint.CheckpointFormatError("it is a value that the field admits")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        "9" * 10_000,
        "\x00",
        '{"format_version": 1}',
        " " * (checkpoint.HEADER_BYTES + 1),
    ],
    ids=["deep", "long number", "binary", "incomplete", "large"],
)
def test_a_config_that_is_no_json_object_is_a_format_error(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(checkpoint.CheckpointFormatError):
        fpjax.load_generator(tmp_path)


def test_a_denoiser_predicts_as_many_channels_as_it_reads():
    with pytest.raises(ValueError, match="reads 6 channels and predicts 3"):
        DiffusionConfig(UNetConfig(in_channels=6))
    with pytest.raises(ValueError, match="reads 3 channels and predicts 6"):
        DiffusionConfig(UNetConfig(out_channels=6))


def test_a_prior_of_other_channels_than_its_first_stage_is_refused(tmp_path):
    import jax

    from fpjax.models import autoencoder, unet

    stage = AutoencoderConfig(ch=32, ch_mult=(1,), num_res_blocks=1, resolution=8)
    prior = DiffusionConfig(
        UNetConfig(8, 4, 4, 32, (1,), num_res_blocks=1, attention_resolutions=())
    )
    for path, name, config, params in (
        (tmp_path / "m", "autoencoder", stage, autoencoder.init(stage, jax.random.key(0))),
        (tmp_path / "m/prior", "diffusion", prior, unet.init(prior.unet, jax.random.key(0))),
    ):
        checkpoint.save_checkpoint(path, name, checkpoint.config_to_json(config), params)
    with pytest.raises(checkpoint.CheckpointFormatError, match=r"draws 4 channels .* reads 3"):
        fpjax.load_generator(tmp_path / "m")

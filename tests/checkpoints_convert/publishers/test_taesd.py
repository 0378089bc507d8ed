"""TAESD files: architecture from positions, both halves or one, and misfits by name."""

import jax
import numpy as np
import pytest

from checkpoints_convert.publishers import taesd
from checkpoints_convert.table import ConversionError, flatten, unflatten
from fpjax.models import autoencoder_tiny
from fpjax.models.autoencoder_tiny import AutoencoderTinyConfig


def state_dict(half, config):
    """A state dict with the published names and shapes, all zeros, for one half."""
    shapes = flatten(autoencoder_tiny.param_shapes(config))
    out = {}
    for rule in taesd.layer_rules(config, r"encoder\.", r"decoder\.", 1):
        name = rule.pattern.replace("\\", "")
        if not name.startswith(half) or rule.target not in shapes:
            continue
        shape = shapes[rule.target].shape
        if rule.transform == "oihw_to_hwio":
            shape = (shape[3], shape[2], *shape[:2])
        elif rule.transform == "conv1x1_to_linear":
            shape = (shape[1], shape[0], 1, 1)
        out[name.removeprefix(f"{half}.")] = np.zeros(shape, np.float16)
    return out


@pytest.mark.parametrize(
    "config",
    [
        AutoencoderTinyConfig.taesd(),
        AutoencoderTinyConfig.taesd3(),
        AutoencoderTinyConfig.taef2(),
        AutoencoderTinyConfig(channels=16, encoder_blocks=(2, 1), decoder_blocks=(1, 2)),
    ],
)
def test_architecture_is_inferred(config):
    decoder, encoder = state_dict("decoder", config), state_dict("encoder", config)
    conversion = taesd.convert_taesd(decoder, encoder)
    assert conversion.config == config
    shapes = jax.tree.map(np.shape, conversion.plan.apply())
    expected = jax.tree.map(lambda leaf: leaf.shape, autoencoder_tiny.param_shapes(config))
    assert shapes == expected


def test_published_layer_positions():
    # As read off the published taef2 files: the last layers, and where the side changes.
    decoder = state_dict("decoder", AutoencoderTinyConfig.taef2())
    assert {"1.bias", "3.pool.3.weight", "7.weight", "12.weight", "17.weight", "19.bias"} <= set(
        decoder
    )
    assert "7.bias" not in decoder and "8.pool.0.weight" not in decoder
    encoder = state_dict("encoder", AutoencoderTinyConfig.taef2())
    assert {"0.bias", "2.weight", "6.weight", "10.weight", "13.pool.1.bias", "14.bias"} <= set(
        encoder
    )


def test_a_decoder_alone_decodes_only():
    config = AutoencoderTinyConfig.taesd()
    conversion = taesd.convert_taesd(state_dict("decoder", config))
    assert not conversion.config.has_encoder
    assert unflatten({step.target: 0 for step in conversion.plan.steps}).keys() == {"decoder"}
    assert any("decodes only" in note for note in conversion.notes)


def test_swapped_and_foreign_files_are_named():
    config = AutoencoderTinyConfig.taesd()
    decoder, encoder = state_dict("decoder", config), state_dict("encoder", config)
    with pytest.raises(ConversionError, match=r"not a TAESD decoder.*it is an encoder"):
        taesd.convert_taesd(encoder, decoder)
    with pytest.raises(ConversionError, match="not a TAESD encoder"):
        taesd.convert_taesd(decoder, {"x": np.zeros(1)})
    with pytest.raises(ConversionError, match=r"no rule for source tensor decoder\.3\.skip"):
        taesd.convert_taesd({**decoder, "3.skip.weight": np.zeros((64, 64, 1, 1))}, encoder)
    del decoder["7.weight"]
    with pytest.raises(ConversionError, match="nothing fills parameter decoder/stage/0/upsample"):
        taesd.convert_taesd(decoder, encoder)

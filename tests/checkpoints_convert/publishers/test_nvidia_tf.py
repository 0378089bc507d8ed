"""TensorFlow StyleGAN2 networks give the images of the PyTorch ones with the same weights."""

import jax.numpy as jnp
import numpy as np
import pytest

import fpjax
from checkpoints_convert.command import run
from checkpoints_convert.publishers import nvidia_tf
from checkpoints_convert.table import ConversionError
from fpjax.models import resample
from tests.checkpoints_convert.foreign import (
    fixture_arrays,
    nhwc,
    to_tensorflow,
    write_tensorflow,
)
from tests.reference import relative_error

# The bound of every parity test: 1e-4 of the images' standard deviation, in float32.
BOUND = 1e-4
KWARGS = {"num_channels": 3, "resolution": 32, "mapping_lrmul": 0.01, "conv_clamp": None}


@pytest.fixture(scope="module")
def case():
    state, arrays = fixture_arrays("nvlabs_sg2ada_r32_random.npz")
    return to_tensorflow(state), arrays


def components(variables):
    """As the programs keep them: a network for each half, and what is left for the whole."""
    halves = {
        half: {n.removeprefix(f"{half}/"): v for n, v in variables.items() if n.startswith(half)}
        for half in ("synthesis", "mapping")
    }
    own = {name: v for name, v in variables.items() if "/" not in name}
    parts = {half: (f"G_{half}", KWARGS, found, {}) for half, found in halves.items()}
    return own, parts


@pytest.mark.parametrize("layout", ["components", "prefixed", "G_prefixed"])
def test_a_trio_gives_the_images_of_its_third_network(tmp_path, monkeypatch, case, layout):
    variables, arrays = case
    own, parts = components(variables)
    if layout != "components":
        start = layout.removesuffix("prefixed")
        own = {(start + n if "/" in n else n): v for n, v in variables.items()}
        parts = {}
    other = {name: v * np.float32(0) for name, v in own.items()}
    trio = [("G", KWARGS, other, {}), ("D", {}, {}, {}), ("Gs", KWARGS, own, parts)]
    write_tensorflow(monkeypatch, tmp_path / "afhqcat.pkl", trio)
    assert run([str(tmp_path / "afhqcat.pkl"), str(tmp_path / "out")]) == 0
    generator = fpjax.load_generator(tmp_path / "out")
    w = generator.map(generator.params, jnp.asarray(arrays["z"]))
    assert relative_error(w, arrays["w"][:, 0]) <= BOUND
    images = generator.decode(generator.params, jnp.asarray(arrays["w"]))
    assert relative_error(images, nhwc(arrays["img"])) <= BOUND
    truncated = generator.map(generator.params, jnp.asarray(arrays["z"]), 0.7)
    images = generator.decode(generator.params, truncated)
    assert relative_error(images, nhwc(arrays["img_psi07"])) <= BOUND
    assert generator.info["source_kind"] == "StyleGAN2, NVIDIA TensorFlow pickle"
    assert "the weights of Gs are used" in generator.info["notes"]


def test_upsampling_kernels_are_applied_as_tensorflow_applies_them():
    """Against `upsample_conv_2d` by definition.

    TensorFlow's transposed convolution is the gradient of its correlation, out[p] = sum_q x[q]
    w[p - 2q], and the program hands it the kernel turned; so zeros are put between the pixels and
    the kernel as stored is correlated with them, before the FIR filter of gain 4.
    """
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 5, 5, 2)).astype("f4")
    stored = rng.standard_normal((3, 3, 2, 3)).astype("f4")
    turned = stored[::-1, ::-1]
    spread = np.zeros((1, 11, 11, 3))
    for row in range(5):
        for column in range(5):
            for i in range(3):
                for j in range(3):
                    spread[0, 2 * row + i, 2 * column + j] += x[0, row, column] @ turned[i, j]
    taps = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 16
    padded = np.pad(spread, ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = sum(
        taps[i, j] * padded[:, i : i + 10, j : j + 10] for i in range(4) for j in range(4)
    )
    ours = nvidia_tf.TRANSFORMS["turned_kernel"](stored)
    out = resample.conv2d_up(jnp.asarray(x), jnp.asarray(ours), (1.0, 3.0, 3.0, 1.0))
    np.testing.assert_allclose(out, expected, atol=1e-4)


def test_styles_are_centred_on_one_when_the_network_runs(case):
    variables, _ = case
    short = nvidia_tf.variables_of({"variables": variables, "components": {}, "static_kwargs": {}})
    params = nvidia_tf.convert_generator(short).plan.apply()
    bias = params["synthesis"]["b8"]["conv1"]["affine"]["bias"]
    np.testing.assert_array_equal(bias, short["8x8/Conv1/mod_bias"] + 1)


def test_settings_of_the_file_are_used_and_others_refused(case):
    variables, _ = case
    short = nvidia_tf.variables_of({"variables": variables, "components": {}, "static_kwargs": {}})
    config = nvidia_tf.infer_config(
        short, {"conv_clamp": 256, "mapping_lrmul": 0.02, "resample_kernel": [1, 2, 2, 1]}
    )
    assert (config.conv_clamp, config.mapping_lr_multiplier) == (256.0, 0.02)
    assert config.fir == (1.0, 2.0, 2.0, 1.0)
    assert config.resolution == 32 and dict(config.channels) == {4: 64, 8: 64, 16: 64, 32: 32}
    with pytest.raises(ConversionError, match="architecture = 'resnet'"):
        nvidia_tf.infer_config(short, {"architecture": "resnet"})
    with pytest.raises(ConversionError, match="conditional"):
        nvidia_tf.infer_config({**short, "LabelConcat/weight": np.zeros((1, 1))})
    with pytest.raises(ConversionError, match="first StyleGAN"):
        nvidia_tf.infer_config({"4x4/Const/StyleMod/weight": np.zeros((1, 1))})


def test_what_is_left_over_or_missing_is_named(case):
    variables, _ = case
    short = nvidia_tf.variables_of({"variables": variables, "components": {}, "static_kwargs": {}})
    with pytest.raises(ConversionError, match="no rule for source tensor 8x8/Skip/weight"):
        nvidia_tf.convert_generator({**short, "8x8/Skip/weight": np.zeros((1, 1), "f4")})
    del short["noise3"]
    with pytest.raises(ConversionError, match=r"nothing fills parameter .*b16/conv0/noise_const"):
        nvidia_tf.convert_generator(short)

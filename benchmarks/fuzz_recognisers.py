"""Fuzzing of what comes after the readers: recognisers, configurations, documents.

    python benchmarks/fuzz_recognisers.py --executions 100000 --seed 0

Names, shapes and dtypes of small networks, and the configurations of diffusers and CompVis, are
damaged at random and handed to the publishers without the last net of `detect.recognise`. Anything
but the two error types of the converter is printed with its seed and counted; so is a message of
over 2,000 characters.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import sys
import time
import traceback
from types import SimpleNamespace

import numpy as np

from checkpoints_convert import detect
from checkpoints_convert.found import Found
from checkpoints_convert.publishers import (
    compvis,
    diffusers_autoencoder,
    diffusers_unet,
    rosinality,
    strangers,
)
from checkpoints_convert.publishers.stylegan2 import ARGUMENTS
from checkpoints_convert.readers import CheckpointError, Limits
from checkpoints_convert.request import Request
from checkpoints_convert.table import ConversionError
from tests.checkpoints_convert.foreign import fixture_arrays, to_basicsr, to_genforce

ALLOWED = (ConversionError, CheckpointError)
VALUES = (
    *(None, True, False, 0, 1, -1, 2, 3, 8, 10**9, 10**400, 0.5, -0.5, float("inf"), float("nan")),
    *("", "silu", "linear", "x" * 5000, [], {}, [[]], [None], [32, 64], [10**9] * 2, {"a": [1]}),
    *(["DownBlock2D", "AttnDownBlock2D"], ["UpBlock2D"] * 40, "\x1b[2J\n", (1, 2), b"bytes"),
)
ARGUMENT_TEXTS = (
    *("", "{", "[]", "null", '"x"', "1" * 400, '{"z_dim": 10}', '{"synthesis_kwargs": 1}'),
    '{"synthesis_kwargs": {"conv_clamp": 1e999, "channel_base": -1}, "mapping_kwargs": []}',
    "[" * 5000,
)
NAMES = (
    "x",
    "g_ema.x",
    "model_ema.decay",
    "latent_avg",
    "betas",
    "scale_factor",
    "ema.0",
    "\x1b\n",
)


def seeds() -> list[dict[str, tuple[int, ...]]]:
    """Names and shapes of networks of every layout."""
    ada = fixture_arrays("nvlabs_sg2ada_r32_random.npz")[0]
    port = fixture_arrays("rosinality_sg2_r32_random.npz")[0]
    stage = fixture_arrays("compvis_vq_f4_small_random.npz")[0]
    inner = fixture_arrays("compvis_unet_small_random.npz")[0]
    kl = fixture_arrays("compvis_kl_f4_tiny_random.npz")[0]
    taesd = {
        "1.weight": (64, 4, 3, 3),
        "3.conv.0.weight": (64, 64, 3, 3),
        "5.weight": (3, 64, 3, 3),
    }
    whole = {f"first_stage_model.{name}": value for name, value in stage.items()}
    whole |= {f"model.diffusion_model.{name}": value for name, value in inner.items()}
    averages = {f"model_ema.{name.replace('.', '')}": value for name, value in inner.items()}
    states = [ada, port, to_basicsr(port), to_genforce(ada), stage, inner, kl, whole]
    states += [whole | averages, inner | averages]
    shapes = [{name: np.shape(value) for name, value in state.items()} for state in states]
    return [*shapes, {f"g_ema.{n}": s for n, s in shapes[1].items()} | shapes[1], taesd]


def damaged(shapes, rng: random.Random) -> dict[str, np.ndarray]:
    """Tensors without memory of their own, of shapes and names that are nearly right."""
    shapes = dict(shapes)
    prefix = rng.choice(("", "", "module.", "g_ema.", "state_dict.", "sd/", "ema.generator."))
    for _ in range(rng.choice((0, 1, 1, 2, 5))):
        name = rng.choice(list(shapes))
        kind = rng.randrange(6)
        if kind == 0:
            del shapes[name]
        elif kind == 1:
            shapes[name] = tuple(
                rng.choice((0, 1, 2, 3, 64, 10**4)) for _ in range(rng.randrange(6))
            )
        elif kind == 2:
            shapes[name] = tuple(rng.sample(shapes[name], len(shapes[name])))
        elif kind == 3:
            shapes[rng.choice(NAMES)] = rng.choice(((), (1,), (3, 3), (1000,), (64,)))
        elif kind == 4:
            shapes[name.replace(".", rng.choice(("/", "..", ".0.", "")), 1)] = shapes.pop(name)
        else:
            digit = str(rng.choice((0, 1, 7, 99, 10**9)))
            shapes["".join(digit if c.isdigit() else c for c in name)] = shapes[name]
        if not shapes:
            break
    dtype = rng.choice((np.float32,) * 9 + (np.int64, np.complex64, np.bool_))
    zero = np.zeros((), dtype)
    return {prefix + name: np.broadcast_to(zero, shape) for name, shape in shapes.items()}


def options(rng: random.Random) -> Request:
    """Flags, mostly none."""
    said = {}
    if rng.random() < 0.5:
        said = {"num_head_channels": 16, "resolution": 32}
    if rng.random() < 0.1:
        said["scale_factor"] = 2.0
    return Request(weights=rng.choice((None, None, None, "ema", "raw")), options=said)


def recognise(rng: random.Random, states) -> None:
    """One damaged state dict through all publishers."""
    tensors = damaged(rng.choice(states), rng)
    form = rng.choice(("safetensors", "torch-zip"))
    tree = tensors if form == "torch-zip" else {}
    metadata = {ARGUMENTS: rng.choice(ARGUMENT_TEXTS)} if rng.random() < 0.2 else {}
    file = SimpleNamespace(format=form, path="x", tree=tree, limits=Limits(), metadata=metadata)
    found, request = Found(file, tensors), options(rng)
    if detect._first(detect.FROM_NAMES, found, request) is None:
        strangers.refuse(found)


def configure(rng: random.Random) -> None:
    """One damaged configuration through the publisher that reads such."""
    base = {
        "block_out_channels": [32, 64],
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "sample_size": 16,
    }
    unet_types = {
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    }
    stage_types = {
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
    }
    scheduler = {"_class_name": "DDIMScheduler", "beta_schedule": "linear", "beta_start": 0.001}
    inner = {"num_heads": 2, "num_head_channels": -1, "use_new_attention_order": False}
    model = {"timesteps": 1000, "linear_start": 0.001, "linear_end": 0.02, "scale_factor": 1.0}
    kind = rng.randrange(4)
    if kind == 0:
        keys = [*base, "in_channels", "out_channels", "norm_eps", "freq_shift", *unet_types]
        config = spoil({**base, **unet_types}, keys, rng)
        keys = [*scheduler, "beta_end", "num_train_timesteps", "trained_betas", "prediction_type"]
        diffusers_unet.convert_unet({}, config, spoil(scheduler, keys, rng))
    elif kind == 1:
        keys = [*base, *stage_types, "latent_channels", "scaling_factor", "shift_factor", "act_fn"]
        config = spoil({**base, **stage_types}, keys, rng)
        diffusers_autoencoder.convert_autoencoder({}, config)
    elif kind == 2:
        keys = ["latent_channels", "num_encoder_blocks", "num_decoder_blocks", "scaling_factor"]
        keys += ["encoder_block_out_channels", "decoder_block_out_channels", "in_channels"]
        diffusers_autoencoder.convert_autoencoder_tiny({}, spoil({}, keys, rng))
    else:
        inner = spoil(inner, list(inner), rng)
        model = spoil(model, [*model, "beta_schedule", "parameterization", "image_size"], rng)
        model["unet_config"] = rng.choice(({"params": inner}, {"params": inner}, *VALUES))
        compvis.stated_in({"model": {"params": model}})


def spoil(config: dict, keys: list[str], rng: random.Random) -> dict:
    """The same with a few values of other types and sizes."""
    return config | {rng.choice(keys): rng.choice(VALUES) for _ in range(rng.choice((0, 1, 1, 2)))}


def main() -> None:
    """Runs the campaign and prints its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--executions", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    # A file without an average has one estimated, in bounded time that would be most of all.
    rosinality.NUM_AVERAGED_LATENTS = 1024
    states, counts, slowest = seeds(), collections.Counter(), 0.0
    start = time.monotonic()
    for index in range(flags.executions):
        rng = random.Random(f"{flags.seed}/{index}")
        began = time.monotonic()
        try:
            (recognise(rng, states) if index % 4 == 0 else configure(rng))
            counts["accepted"] += 1
        except ALLOWED as error:
            counts["refused"] += 1
            if len(str(error).split("\n")[0]) > 2000:
                counts["long messages"] += 1
                print(f"seed {flags.seed}/{index}: {len(str(error))} characters", file=sys.stderr)
        except Exception:
            counts["escaped"] += 1
            print(f"seed {flags.seed}/{index}", file=sys.stderr)
            traceback.print_exc(limit=-4)
        slowest = max(slowest, time.monotonic() - began)
    seconds = time.monotonic() - start
    print(json.dumps({"seconds": round(seconds), "slowest": round(slowest, 2), **counts}))
    sys.exit(counts["escaped"] > 0 or counts["long messages"] > 0)


if __name__ == "__main__":
    main()

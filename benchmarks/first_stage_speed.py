"""Decoding and encoding of a VQ first stage, in fpjax and in diffusers, with the same weights.

    python benchmarks/first_stage_speed.py [--channels 16,32,64] [--side 64] [--batches 1,8] \\
        [--repeats 5] [--processor_time] [--json FILE]

Weights are random, made by diffusers and converted; both sides must agree before anything is timed.
For each of decode (without codes) and encode: a forward pass, and one with the gradient of the
output's sum of squares with respect to the input. PyTorch runs eagerly, in its own memory layout
and channels-last, and the faster counts. Turns are taken, and the median of the ratios is given:
above 1 fpjax is faster.

--processor_time counts seconds of all cores, which is what a picture costs where each core has
pictures of its own, as in attribution; the clock also counts how well one picture is split among
cores.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch

from checkpoints_convert.publishers.diffusers_autoencoder import (
    AutoencoderOptions,
    convert_autoencoder,
)
from fpjax.io.atomic import atomic_write
from fpjax.models import autoencoder


def peers(channels: tuple[int, ...], side: int):
    """A diffusers model, and the same as (config, params)."""
    from diffusers import VQModel

    torch.manual_seed(0)
    model = VQModel(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=3,
        num_vq_embeddings=1024,
        norm_num_groups=8,
        sample_size=side,
    ).eval()
    tensors = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    options = AutoencoderOptions(scale_factor=1.0)
    made = convert_autoencoder(tensors, dict(model.config), options)
    return model, made.config, jax.tree.map(jnp.asarray, made.plan.apply())


def torch_calls(model, layout):
    def place(x: np.ndarray):
        tensor = torch.from_numpy(x).permute(0, 3, 1, 2)
        return tensor.contiguous(memory_format=layout)

    model = model.to(memory_format=layout)
    runs = {
        "decode": lambda x: model.decode(x, force_not_quantize=True).sample,
        "encode": lambda x: model.encode(x).latents,
    }

    def forward(name, x):
        with torch.no_grad():
            return runs[name](place(x))

    def gradient(name, x):
        given = place(x).requires_grad_()
        return torch.autograd.grad(runs[name](given).square().sum(), given)[0]

    return {"forward": forward, "gradient": gradient}


def jax_calls(config, params):
    runs = {
        "decode": lambda p, x: autoencoder.decode(config, p, x, quantize=False),
        "encode": lambda p, x: autoencoder.encode(config, p, x),
    }
    forward = {name: jax.jit(run) for name, run in runs.items()}
    gradient = {
        name: jax.jit(jax.grad(lambda x, p, run=run: jnp.square(run(p, x)).sum()))
        for name, run in runs.items()
    }
    return {
        "forward": lambda name, x: jax.block_until_ready(forward[name](params, x)),
        "gradient": lambda name, x: jax.block_until_ready(gradient[name](x, params)),
    }


def seconds(clock, call, *operands) -> float:
    started = clock()
    call(*operands)
    return clock() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--channels", default="16,32,64")
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--processor_time", action="store_true")
    parser.add_argument("--json")
    args = parser.parse_args()
    clock = time.process_time if args.processor_time else time.perf_counter
    channels = tuple(map(int, args.channels.split(",")))
    model, config, params = peers(channels, args.side)
    ours = jax_calls(config, params)
    layouts = {"own": torch.contiguous_format, "channels-last": torch.channels_last}
    rng = np.random.default_rng(0)
    rows = []
    for batch in map(int, args.batches.split(",")):
        grid = (batch, *config.latent_shape)
        inputs = {"decode": grid, "encode": (batch, args.side, args.side, 3)}
        for name, shape in inputs.items():
            x = rng.standard_normal(shape).astype(np.float32)
            for kind in ("forward", "gradient"):
                mine = np.asarray(ours[kind](name, x))
                times: dict[str, list[float]] = {"fpjax": []}
                for layout, memory in layouts.items():
                    theirs = torch_calls(model, memory)[kind](name, x).permute(0, 2, 3, 1)
                    error = np.abs(mine - theirs.numpy()).max() / np.abs(mine).max()
                    assert error < 1e-3, (name, kind, layout, error)
                    times[layout] = []
                for _ in range(args.repeats):
                    times["fpjax"].append(seconds(clock, ours[kind], name, x))
                    for layout, memory in layouts.items():
                        call = torch_calls(model, memory)[kind]
                        call(name, x)  # moving the weights is not counted
                        times[layout].append(seconds(clock, call, name, x))
                best = np.minimum(*(times[layout] for layout in layouts))
                row = {
                    "what": f"{name}, {kind}",
                    "batch": batch,
                    "fpjax_ms_an_image": 1e3 * float(np.median(times["fpjax"])) / batch,
                    "diffusers_ms_an_image": 1e3 * float(np.median(best)) / batch,
                    "ratio": float(np.median(best / np.array(times["fpjax"]))),
                }
                rows.append(row)
                print({k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()})
    if args.json:
        with atomic_write(Path(args.json), "w") as file:
            json.dump({"arguments": vars(args), "rows": rows}, file, indent=2)


if __name__ == "__main__":
    main()

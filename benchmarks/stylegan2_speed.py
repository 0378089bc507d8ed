"""StyleGAN2 synthesis against PyTorch on the same weights, in the same process, side by side.

    python benchmarks/stylegan2_speed.py --batch 16 --repeats 10 --json speed.json

The peer is written here in plain PyTorch the way the published programs do it: one kernel for each
sample through a grouped convolution, transposed convolution and FIR filter for up-sampling. Images
of the two are compared first, so that the same work is timed. Rows are minima over the repeats,
which alternate between the two.
"""

from __future__ import annotations

import json
import math
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from absl import app, flags

import fpjax
from fpjax.models import stylegan2

_BATCH = flags.DEFINE_integer("batch", 16, "Images at a time.")
_REPEATS = flags.DEFINE_integer("repeats", 10, "Runs of each.")
_JSON = flags.DEFINE_string("json", None, "File to write the figures to.")


class TorchSynthesis:
    """The synthesis network in PyTorch, NCHW."""

    def __init__(self, config, params):
        self.config = config
        to_torch = lambda x: torch.from_numpy(np.array(x))  # noqa: E731
        self.params = jax.tree.map(to_torch, dict(params["synthesis"]))
        taps = torch.tensor(config.fir)
        self.fir = torch.outer(taps, taps) / taps.sum() ** 2

    def style(self, layer, w):
        affine = layer["affine"]
        return w @ (affine["weight"] / math.sqrt(w.shape[1])) + affine["bias"]

    def filter(self, x, pad):
        channels = x.shape[1]
        kernel = (self.fir * 4).expand(channels, 1, 4, 4)
        return F.conv2d(F.pad(x, [*pad, *pad]), kernel, groups=channels)

    def conv(self, layer, x, w, up):
        weight = layer["weight"].permute(3, 2, 0, 1)
        weight = weight[None] * self.style(layer, w)[:, None, :, None, None]
        weight = weight * torch.rsqrt((weight**2).sum(dim=(2, 3, 4), keepdim=True) + 1e-8)
        batch, c_out, c_in = weight.shape[:3]
        x = x.reshape(1, batch * c_in, *x.shape[2:])
        if up:
            weight = weight.transpose(1, 2).reshape(batch * c_in, c_out, 3, 3)
            x = F.conv_transpose2d(x, weight, stride=2, groups=batch)
            x = self.filter(x.reshape(batch, c_out, *x.shape[2:]), (1, 1))
        else:
            x = F.conv2d(x, weight.reshape(batch * c_out, c_in, 3, 3), padding=1, groups=batch)
            x = x.reshape(batch, c_out, *x.shape[2:])
        x = x + layer["noise_const"] * layer["noise_strength"]
        return F.leaky_relu(x + layer["bias"][:, None, None], 0.2) * math.sqrt(2)

    def rgb(self, layer, x, w):
        weight = layer["weight"] / math.sqrt(x.shape[1])
        weight = weight[None] * self.style(layer, w)[:, :, None]
        return torch.einsum("bchw,bcd->bdhw", x, weight) + layer["bias"][:, None, None]

    def __call__(self, w):
        image = None
        for side in self.config.block_resolutions:
            block = self.params[f"b{side}"]
            if side == 4:
                x = block["const"].permute(2, 0, 1)[None].expand(len(w), -1, -1, -1)
            else:
                x = self.conv(block["conv0"], x, w, up=True)
            x = self.conv(block["conv1"], x, w, up=False)
            rgb = self.rgb(block["torgb"], x, w)
            if image is None:
                image = rgb
            else:
                wide = torch.zeros(*image.shape[:2], side, side)
                wide[:, :, ::2, ::2] = image
                image = rgb + self.filter(wide, (2, 1))
        return image


def main(argv):
    del argv
    generator = fpjax.load_generator("avatars-stylegan2")
    config, params = generator.config, generator.params
    peer = TorchSynthesis(config, params)
    w = np.asarray(generator.sample_latents(params, jax.random.key(0), _BATCH.value))
    w_jax, w_torch = jnp.asarray(w), torch.from_numpy(w.copy())

    forward = jax.jit(lambda w: stylegan2.synthesis(config, params, w))
    backward = jax.jit(jax.grad(lambda w: (stylegan2.synthesis(config, params, w) ** 2).sum()))

    def torch_backward():
        leaf = w_torch.clone().requires_grad_()
        return torch.autograd.grad((peer(leaf) ** 2).sum(), leaf)[0]

    with torch.no_grad():
        theirs = peer(w_torch).permute(0, 2, 3, 1).numpy()
    error = np.abs(np.asarray(forward(w_jax)) - theirs).max() / theirs.std()
    if error > 1e-4:
        raise SystemExit(f"the two networks differ by {error:.1e} of the standard deviation")

    def torch_forward():
        with torch.no_grad():
            return peer(w_torch)

    cases = {
        "forward": (lambda: forward(w_jax).block_until_ready(), torch_forward),
        "forward and vjp": (lambda: backward(w_jax).block_until_ready(), torch_backward),
    }
    rows = []
    for name, runs in cases.items():
        seconds: tuple[list[float], list[float]] = ([], [])
        for run in runs:
            run()
        for _ in range(_REPEATS.value):
            for times, run in zip(seconds, runs, strict=True):
                began = time.perf_counter()
                run()
                times.append(time.perf_counter() - began)
        ours, peers = min(seconds[0]), min(seconds[1])
        rows.append({"case": name, "fpjax_s": ours, "torch_s": peers, "ratio": peers / ours})
        print(
            f"{name:16s} fpjax {1e3 * ours:7.1f} ms   torch {1e3 * peers:7.1f} ms   "
            f"torch / fpjax {peers / ours:.2f}"
        )
    result = {
        "batch": _BATCH.value,
        "device": str(jax.devices()[0]),
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        "torch_threads": torch.get_num_threads(),
        "max_difference_over_std": float(error),
        "rows": rows,
    }
    if _JSON.value:
        with open(_JSON.value, "w") as file:
            json.dump(result, file, indent=2)


if __name__ == "__main__":
    app.run(main)

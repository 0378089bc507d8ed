"""StyleGAN2 synthesis against PyTorch and the machine's matrix-product peak, on the same weights.

    python benchmarks/decoder_throughput.py --sizes 64,256 --batches 1,8 --json decoder.json

Times the image (forward), its pull-back to the styles (vjp) and its push-forward of a change of
style (jvp), for each side in pixels and number of images. The peers are written here in plain
PyTorch from the paper, in two forms:

  weights      one kernel for each image, through grouped convolutions, as published programs do
  activations  one kernel for all, with scaled activations, as fpjax does

each eager, with channels last, and through torch.compile where that works. Up-sampling is a
transposed convolution followed by the FIR filter. Images and derivatives of all are compared
before anything is timed. Runs of all take turns; a row has the fastest run of each.

All of it runs on JAX's default device, in full float32. On an NVIDIA GPU
`XLA_PYTHON_CLIENT_PREALLOCATE=false` leaves PyTorch memory.

The peak is the best rate of a large float32 product, of JAX's or PyTorch's, measured before and
after. The share of it counts the fewest products that a layer needs (an up-sampling layer 9 for
each pixel of its input), twice that for vjp and jvp, and the time of all that is no product too.

With --profile: what a single pull-back of one image by fpjax spends its time on, from a trace of
its program's parts.
"""

from __future__ import annotations

import functools
import gzip
import json
import math
import os
import platform
import re
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from absl import app, flags

import fpjax
from fpjax.models import stylegan2
from fpjax.models.stylegan2 import StyleGAN2Config
from fpjax.precision import full_precision
from fpjax.programs import program

_SIZES = flags.DEFINE_list("sizes", ["64", "256"], "Sides in pixels: 32 (bundled), 64, 256, 1024.")
_BATCHES = flags.DEFINE_list("batches", ["1", "8"], "Numbers of images at a time.")
_CASES = flags.DEFINE_list("cases", ["forward", "vjp", "jvp"], "What is timed.")
_PEERS = flags.DEFINE_list(
    "peers",
    [f"{a}/{b}" for a in ("weights", "activations") for b in ("eager", "last", "compiled")],
    "PyTorch peers, form/way.",
)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Runs of each at most.")
_SECONDS = flags.DEFINE_float("seconds", 60.0, "A row ends after this time and two runs of each.")
_PROCESSOR_TIME = flags.DEFINE_bool(
    "processor_time",
    False,
    "Count processor seconds, for a machine that is not idle; run it on one core then (taskset).",
)
_PROFILE = flags.DEFINE_bool("profile", False, "What a pull-back spends its time on, and no more.")
_JSON = flags.DEFINE_string("json", None, "File to write the figures to.")

_PUBLISHED = {
    64: StyleGAN2Config(64, channel_base=16384),
    256: StyleGAN2Config.ffhq256_ada(),
    1024: StyleGAN2Config.ffhq1024(),
}


def generator(size):
    """Config and parameters: the bundled generator at 32 px, random weights at other sides."""
    if size == 32:
        bundled = fpjax.load_generator("avatars-stylegan2")
        return bundled.config, bundled.params
    return _PUBLISHED[size], stylegan2.init(_PUBLISHED[size], jax.random.key(0))


def gigaflops(config):
    """Of the products of one image, at 2 for a multiplication and an addition."""
    total = 0
    for side in config.block_resolutions:
        channels = config.num_channels(side)
        if side > 4:
            total += 9 * (side // 2) ** 2 * config.num_channels(side // 2) * channels
        total += side**2 * channels * (9 * channels + 3)
    return 2e-9 * total


def torch_device():
    """PyTorch's name of JAX's default device."""
    if jax.default_backend() == "cpu":
        return "cpu"
    if not torch.cuda.is_available():
        raise SystemExit(
            f"JAX computes on {jax.devices()[0]}, where PyTorch does not: no peer there"
        )
    return "cuda"


def as_torch(array):
    return torch.from_numpy(np.array(array)).to(torch.get_default_device())


class TorchSynthesis:
    """The synthesis network in PyTorch, NCHW, of the styles (B, w_dim)."""

    def __init__(self, config, params, form, memory_format=torch.contiguous_format):
        self.config, self.form, self.memory_format = config, form, memory_format
        self.params = jax.tree.map(as_torch, params["synthesis"])
        for block in self.params.values():
            for layer in block.values():
                if isinstance(layer, dict) and layer["weight"].ndim == 4:
                    weight = layer["weight"].permute(3, 2, 0, 1) / math.sqrt(
                        math.prod(layer["weight"].shape[:3])
                    )
                    layer["weight"] = weight.contiguous(memory_format=memory_format)
        taps = torch.tensor(config.fir)
        self.fir = 4 * torch.outer(taps, taps) / taps.sum() ** 2

    def style(self, layer, w):
        affine = layer["affine"]
        return w @ (affine["weight"] / math.sqrt(w.shape[1])) + affine["bias"]

    def filter(self, x, pad):
        channels = x.shape[1]
        return F.conv2d(F.pad(x, [*pad, *pad]), self.fir.expand(channels, 1, 4, 4), groups=channels)

    def conv(self, layer, x, w, up):
        scaled = self.conv_scaling_weights if self.form == "weights" else self.conv_scaling_images
        x = scaled(layer["weight"], x, self.style(layer, w), up)
        x = x + layer["noise_const"] * layer["noise_strength"]
        return F.leaky_relu(x + layer["bias"][:, None, None], 0.2) * math.sqrt(2)

    def conv_scaling_weights(self, weight, x, style, up):
        weight = weight[None] * style[:, None, :, None, None]
        weight = weight * torch.rsqrt((weight**2).sum(dim=(2, 3, 4), keepdim=True) + 1e-8)
        batch, out, channels = weight.shape[:3]
        x = x.reshape(1, batch * channels, *x.shape[2:])
        if up:
            weight = weight.transpose(1, 2).reshape(batch * channels, out, 3, 3)
            x = F.conv_transpose2d(x, weight, stride=2, groups=batch)
            return self.filter(x.reshape(batch, out, *x.shape[2:]), (1, 1))
        x = F.conv2d(x, weight.reshape(batch * out, channels, 3, 3), padding=1, groups=batch)
        return x.reshape(batch, out, *x.shape[2:])

    def conv_scaling_images(self, weight, x, style, up):
        energy = (weight**2).sum(dim=(2, 3))
        demodulation = torch.rsqrt(style**2 @ energy.T + 1e-8)
        x = x * style[:, :, None, None]
        if up:
            x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
            x = self.filter(x, (1, 1))
        else:
            x = F.conv2d(x, weight, padding=1)
        return x * demodulation[:, :, None, None]

    def rgb(self, layer, x, w):
        weight = (layer["weight"] / math.sqrt(x.shape[1]))[None] * self.style(layer, w)[:, :, None]
        return torch.einsum("bchw,bcd->bdhw", x, weight) + layer["bias"][:, None, None]

    def __call__(self, w):
        image = x = None
        for side in self.config.block_resolutions:
            block = self.params[f"b{side}"]
            if side == 4:
                x = block["const"].permute(2, 0, 1)[None].expand(len(w), -1, -1, -1)
                x = x.contiguous(memory_format=self.memory_format)
            else:
                x = self.conv(block["conv0"], x, w, up=True)
            x = self.conv(block["conv1"], x, w, up=False)
            rgb = self.rgb(block["torgb"], x, w)
            if image is not None:
                wide = torch.zeros(*image.shape[:2], side, side)
                wide[:, :, ::2, ::2] = image
                rgb = rgb + self.filter(wide, (2, 1))
            image = rgb
        return image


def jax_run(config, params, case, w, tangent, cotangent):
    """A function of no arguments that gives an array, NHWC where it is an image."""
    synthesis = functools.partial(stylegan2.synthesis, config)

    def forward(params, w, tangent, cotangent):
        return synthesis(params, w)

    def vjp(params, w, tangent, cotangent):
        return jax.vjp(functools.partial(synthesis, params), w)[1](cotangent)[0]

    def jvp(params, w, tangent, cotangent):
        return jax.jvp(functools.partial(synthesis, params), (w,), (tangent,))[1]

    run = program()(full_precision({"forward": forward, "vjp": vjp, "jvp": jvp}[case]))
    return lambda: run(params, w, tangent, cotangent).block_until_ready()


def torch_run(config, params, peer, case, w, tangent, cotangent):
    """The same in PyTorch, NCHW."""
    form, way = peer.split("/")
    memory_format = torch.channels_last if way == "last" else torch.contiguous_format
    synthesis = TorchSynthesis(config, params, form, memory_format)
    w, tangent = as_torch(w), as_torch(tangent)
    cotangent = as_torch(cotangent).permute(0, 3, 1, 2).contiguous()
    if way == "compiled":
        torch._dynamo.reset()
        synthesis = torch.compile(synthesis.__call__, dynamic=False)

    def forward():
        with torch.no_grad():
            return synthesis(w)

    def vjp():
        leaf = w.clone().requires_grad_()
        return torch.autograd.grad(synthesis(leaf), leaf, cotangent)[0]

    def jvp():
        with torch.no_grad():
            return torch.func.jvp(synthesis, (w,), (tangent,))[1]

    run = {"forward": forward, "vjp": vjp, "jvp": jvp}[case]
    return finished(run)


def finished(run):
    """`run`, and where a GPU computes, wait for it."""

    def wait():
        answer = run()
        if torch.get_default_device().type == "cuda":
            torch.cuda.synchronize()
        return answer

    return wait


def _clock(taken):
    return taken[1] if _PROCESSOR_TIME.value else taken[0]


def matrix_product_peak():
    """Best gigaflops of a large float32 product, of JAX's and PyTorch's."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    ours = jnp.ones((size, size), jnp.float32)
    theirs = torch.ones(size, size)
    product = jax.jit(full_precision(jnp.matmul))
    runs = (
        lambda: product(ours, ours).block_until_ready(),
        finished(lambda: theirs @ theirs),
    )
    return 2e-9 * size**3 / min(min(map(_clock, taken)) for taken in interleaved(runs, 8))


def interleaved(runs, repeats, seconds=math.inf):
    """(seconds, processor seconds) of all runs of each function, which take turns."""
    for run in runs:
        run()  # compiles
    times, began = [[] for _ in runs], time.perf_counter()
    for i in range(repeats):
        if i >= 2 and time.perf_counter() - began > seconds:
            break
        for taken, run in zip(times, runs, strict=True):
            start = time.perf_counter(), time.process_time()
            run()
            taken.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return times


def measure(config, params, case, batch):
    """One row: seconds of all, after their answers were found equal."""
    rng = np.random.default_rng(batch)
    w, tangent = rng.normal(size=(2, batch, config.w_dim)).astype(np.float32)
    shape = (batch, config.resolution, config.resolution, 3)
    cotangent = rng.normal(size=shape).astype(np.float32)
    runs = {"fpjax": jax_run(config, params, case, *map(jnp.asarray, (w, tangent, cotangent)))}
    expected, failed, errors = np.asarray(runs["fpjax"]()), {}, {}
    for peer in _PEERS.value:
        try:
            run = torch_run(config, params, peer, case, w, tangent, cotangent)
            answer = run()
        except Exception as error:  # what torch.compile cannot do differs between machines
            failed[peer] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        if answer.ndim == 4:
            answer = answer.permute(0, 2, 3, 1)
        difference = answer.cpu().numpy() - expected
        if case == "forward":
            errors[peer], bound = float(np.abs(difference).max() / expected.std()), 1e-4
        else:
            # Rounding puts an activation near zero on either side of a leaky ReLU's kink, so that
            # single entries differ: the root mean square is compared.
            errors[peer], bound = float(difference.std() / expected.std()), 1e-2
        if errors[peer] > bound:
            raise SystemExit(f"{peer}, {case}: {errors[peer]:.1e} of the standard deviation apart")
        runs[peer] = run
    times = interleaved(list(runs.values()), _REPEATS.value, _SECONDS.value)
    best = {name: min(map(_clock, taken)) for name, taken in zip(runs, times, strict=True)}
    return {
        "size": config.resolution,
        "batch": batch,
        "case": case,
        "seconds": best,
        "difference_over_std": errors,
        "failed": failed,
    }


def profile(config, params):
    """Milliseconds of a pull-back by kind of work, from a trace of one."""
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.normal(size=(1, config.w_dim)), jnp.float32)
    shape = (1, config.resolution, config.resolution, 3)
    run = jax_run(config, params, "vjp", w, w, jnp.asarray(rng.normal(size=shape), jnp.float32))
    run()
    with tempfile.TemporaryDirectory() as folder:
        jax.profiler.start_trace(folder)
        run()
        jax.profiler.stop_trace()
        (trace,) = Path(folder).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    spent = dict.fromkeys(("products", "kernels put in order", "all else"), 0.0)
    for event in events:
        # Parts of the program; Python's frames begin with $, and what runs parts has colons.
        name = event.get("name", "")
        kernel = re.fullmatch(r"([a-z_-]+)(\.\d+)?", name)
        # What encloses other parts would be counted twice.
        if event.get("ph") != "X" or not kernel or kernel[1] in ("while", "call", "conditional"):
            continue
        kind = "all else"
        if name.startswith(("ynn", "conv_general", "dot")):
            kind = "products"
        elif "transpose" in name or "reverse" in name:
            kind = "kernels put in order"
        spent[kind] += event["dur"] / 1e3
    return spent


def main(argv):
    del argv
    if _PROFILE.value:
        for size in map(int, _SIZES.value):
            spent = profile(*generator(size))
            parts = ", ".join(f"{kind} {part:.0f} ms" for kind, part in spent.items())
            print(f"{size:4d} px, vjp of one image: {parts}", flush=True)
        return
    if jax.default_backend() != "cpu" and _PROCESSOR_TIME.value:
        raise app.UsageError("--processor_time says nothing of a GPU")
    torch.set_default_device(torch_device())
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    rows, peak = [], matrix_product_peak()
    for size in map(int, _SIZES.value):
        config, params = generator(size)
        for batch in map(int, _BATCHES.value):
            for case in _CASES.value:
                row = measure(config, params, case, batch)
                row["gigaflops"] = batch * gigaflops(config) * (1 if case == "forward" else 2)
                rows.append(row)
                peers = {k: v for k, v in row["seconds"].items() if k != "fpjax"}
                line = f"{size:4d} px x {batch:<3d}{case:8s} fpjax {row['seconds']['fpjax']:8.4f} s"
                for peer, seconds in peers.items():
                    line += f"  {peer} {seconds / row['seconds']['fpjax']:.2f}"
                print(line, flush=True)
                for peer, reason in row["failed"].items():
                    print(f"     {peer} does not run: {reason}", flush=True)
    peak = max(peak, matrix_product_peak())
    print(f"\nmatrix products: {peak:.0f} gigaflops\n")
    for row in rows:
        ours = row["seconds"]["fpjax"]
        peers = [s for name, s in row["seconds"].items() if name != "fpjax"]
        row["fastest_peer_over_fpjax"] = min(peers) / ours if peers else None
        row["share_of_peak"] = row["gigaflops"] / ours / peak
        print(
            f"{row['size']:4d} px x {row['batch']:<3d}{row['case']:8s} "
            f"{100 * row['share_of_peak']:3.0f}% of the peak"
            + (f", fastest peer / fpjax {min(peers) / ours:.2f}" if peers else "")
        )
    if _JSON.value:
        result = {
            "matrix_product_gigaflops": peak,
            "clock": "processor" if _PROCESSOR_TIME.value else "wall",
            "device": str(jax.devices()[0]),
            "cpu": platform.processor() or platform.machine(),
            "cpus": os.cpu_count(),
            "load": os.getloadavg()[0],
            "jax": jax.__version__,
            "torch": torch.__version__,
            "torch_threads": torch.get_num_threads(),
            "rows": rows,
        }
        with open(_JSON.value, "w") as file:
            json.dump(result, file, indent=2)


if __name__ == "__main__":
    app.run(main)

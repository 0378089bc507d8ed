"""Time LPIPS-VGG and its image gradient in fpjax and in PyTorch, in one process, as JSON.

    python benchmarks/lpips_speed.py --sizes 32 64 --batch 8 --output lpips_speed.json

Weights are random: the time doesn't depend on them. Both sides hold the target fixed, use the
same number of threads, and must agree on distances and gradients before anything is timed.
"""

import argparse
import json
import os
import platform
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F

from fpjax.perceptual import init_lpips, lpips

BLOCK_CONVS = (2, 2, 3, 3, 3)


def torch_weights(params):
    def tensor(array):
        return torch.from_numpy(np.array(array))

    convs = {
        name: (tensor(conv["weight"]).permute(3, 2, 0, 1).contiguous(), tensor(conv["bias"]))
        for name, conv in params["backbone"].items()
    }
    return convs, [tensor(head).view(1, -1, 1, 1) for head in params["heads"].values()]


def torch_units(convs, x):
    x = (x - torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)) / torch.tensor(
        [0.458, 0.448, 0.450]
    ).view(1, 3, 1, 1)
    units = []
    for block, count in enumerate(BLOCK_CONVS, start=1):
        if block > 1:
            x = F.max_pool2d(x, 2)
        for layer in range(1, count + 1):
            x = F.relu(F.conv2d(x, *convs[f"conv{block}_{layer}"], padding=1))
        units.append(x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10))
    return units


def torch_lpips(weights, x, y):
    convs, heads = weights
    with torch.no_grad():
        target = torch_units(convs, y)
    layers = zip(torch_units(convs, x), target, heads, strict=True)
    return sum(((a - b).pow(2) * head).sum(1).mean((1, 2)) for a, b, head in layers)


def timed(function, repeats):
    """Seconds of each of `repeats` calls, after one call that isn't counted."""
    function()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return seconds


def measure(params, weights, size, batch, repeats):
    rng = np.random.default_rng(size)
    x, y = rng.uniform(-1, 1, (2, batch, size, size, 3)).astype(np.float32)
    x_jax, y_jax = jnp.asarray(x), jnp.asarray(y)
    x_torch = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous().requires_grad_()
    y_torch = torch.from_numpy(y).permute(0, 3, 1, 2).contiguous()

    forward = jax.jit(lpips)

    @jax.jit
    def forward_vjp(params, x, y):
        distances, pullback = jax.vjp(lambda x: lpips(params, x, y), x)
        return distances, pullback(jnp.ones_like(distances))[0]

    def torch_forward():
        with torch.no_grad():
            return torch_lpips(weights, x_torch, y_torch)

    def torch_forward_vjp():
        distances = torch_lpips(weights, x_torch, y_torch)
        return distances, torch.autograd.grad(distances.sum(), x_torch)[0]

    distances, gradient = forward_vjp(params, x_jax, y_jax)
    expected, expected_gradient = torch_forward_vjp()
    expected_gradient = expected_gradient.permute(0, 2, 3, 1).numpy()
    error = np.abs(np.asarray(distances) - expected.detach().numpy()).max() / expected.max().item()
    worst = np.abs(np.asarray(gradient) - expected_gradient).max((1, 2, 3))
    # Of the images, the median: one activation within rounding of zero, decided the other way by
    # the ReLU, changes the gradient of its own image by far more than rounding.
    gradient_error = np.median(worst) / expected_gradient.std()
    if error > 1e-4 or gradient_error > 1e-4:
        raise SystemExit(f"the two sides disagree: {error:.2g}, gradient {gradient_error:.2g}")

    runs = {
        "fpjax_forward": lambda: jax.block_until_ready(forward(params, x_jax, y_jax)),
        "torch_forward": torch_forward,
        "fpjax_forward_vjp": lambda: jax.block_until_ready(forward_vjp(params, x_jax, y_jax)),
        "torch_forward_vjp": torch_forward_vjp,
    }
    row = {"size": size, "batch": batch}
    row |= {"relative_error": float(error), "median_relative_gradient_error": float(gradient_error)}
    for name, run in runs.items():
        seconds = timed(run, repeats)
        row[name] = {"median_s": float(np.median(seconds)), "min_s": min(seconds)}
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--output", help="also write the JSON to this file")
    args = parser.parse_args()

    params = init_lpips(jax.random.key(0))
    weights = torch_weights(params)
    result = {
        "benchmark": "lpips_vgg",
        "jax": jax.__version__,
        "torch": torch.__version__,
        "device": jax.devices()[0].device_kind,
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "torch_threads": torch.get_num_threads(),
        # On a busy machine the comparison is void: a thread pool that spins suffers more.
        "load_average_1min": os.getloadavg()[0],
        "repeats": args.repeats,
        "results": [measure(params, weights, n, args.batch, args.repeats) for n in args.sizes],
    }
    text = json.dumps(result, indent=2)
    print(text)
    if args.output:
        with open(args.output, "w", encoding="utf-8") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()

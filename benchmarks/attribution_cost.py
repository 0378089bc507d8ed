"""What it costs to read a key: the published protocol in PyTorch, its best simple variant, fpjax.

    python benchmarks/attribution_cost.py [--num_images 16] [--rounds 2] [--scheme NAME] \\
        [--json FILE]
    python benchmarks/attribution_cost.py --size 256 --num_images 1 --rounds 1 --variant_steps 20

The same weights and the same 8-bit files for all, in turns:

  published  PyTorch, batch 1, LPIPS-VGG, Adam, 20 starts of 2000 steps. A step is measured
             (forward, backward, update) and multiplied by 40,000; no keys come of it.
  variant    PyTorch, all images in a batch, one start (the mean latent), squared pixel differences
             and the bounds penalty, Adam of the published rate. An oracle that knows the keys
             looks after every tenth step, and an image costs nothing from then on if its key is
             right: the most favourable way to count.
  fpjax      `fpjax.invert` with its defaults, warm.

At 32 px the generator and scheme are the bundled ones; at 256 px the weights are random, in the
layout of StyleGAN2-ADA, on principal components (`benchmarks/inversion_large.py`). Peak memory is
of the whole process so far, so the order is the one above.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch

import fpjax
from fpjax.perceptual import init_lpips

sys.path.insert(0, str(Path(__file__).resolve().parent))
from inversion_large import FITTED, MODULATION, large_scheme, random_generator
from lpips_speed import torch_lpips, torch_weights

PUBLISHED_STEPS = 20 * 2000


def synthesis(generator):
    """The generator in PyTorch: scaled activations, which is the fastest of the peers."""
    sys.argv, arguments = sys.argv[:1], sys.argv
    from decoder_throughput import TorchSynthesis

    sys.argv = arguments
    return TorchSynthesis(generator.config, generator.params, "activations")


class TorchProblem:
    """Unknowns to pictures, and the published penalty, in PyTorch."""

    def __init__(self, scheme):
        problem = fpjax.Problem(scheme, symbols="sigmoid").prepared()
        size, free = problem.num_unknowns, scheme.num_alpha
        unit = jnp.eye(size, dtype=jnp.float32)
        zero = jnp.zeros((1, size), jnp.float32)

        def latents(x):
            return problem.scheme.latents_of(x[:, :free], x[:, free:]).reshape(len(x), -1)

        origin = np.array(latents(zero))
        self.matrix = torch.from_numpy(np.array(latents(unit)) - origin)
        self.origin = torch.from_numpy(origin)
        self.free, self.size = free, size
        self.std = torch.from_numpy(np.array(scheme.alpha_std))
        self.decode = synthesis(scheme.generator)

    def pictures(self, unknowns):
        symbols = 2 * torch.sigmoid(unknowns[:, self.free :]) - 1
        coordinates = torch.cat([unknowns[:, : self.free], symbols], dim=1)
        return self.decode(self.origin + coordinates @ self.matrix)

    def penalty(self, unknowns):
        excess = torch.relu(unknowns[:, : self.free].abs() - 3 * self.std)
        return 0.1 * excess.sum(dim=1)

    def bits(self, unknowns):
        return (unknowns[:, self.free :] > 0).numpy()


def adam(problem, count):
    unknowns = torch.zeros(count, problem.size, requires_grad=True)
    optimiser = torch.optim.Adam([unknowns], lr=0.2)
    decay = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda t: np.exp(-0.001 * (t + 1)))
    return unknowns, optimiser, decay


def step(problem, state, distance):
    unknowns, optimiser, decay = state
    optimiser.zero_grad()
    (distance(problem.pictures(unknowns)) + problem.penalty(unknowns)).sum().backward()
    optimiser.step()
    decay.step()


def published(problem, target, weights, steps):
    """Seconds of a step of one image."""
    state = adam(problem, 1)

    def distance(pictures):
        return torch_lpips(weights, pictures.clamp(-1, 1), target[:1])

    step(problem, state, distance)
    before = time.perf_counter()
    for _ in range(steps):
        step(problem, state, distance)
    return (time.perf_counter() - before) / steps


def variant(problem, target, keys, steps):
    """(seconds an image, keys exact, bit accuracy, steps) with an oracle's stopping."""
    state = adam(problem, len(keys))
    done = np.zeros(len(keys), bool)
    seconds = np.zeros(len(keys))
    taken = 0

    def distance(pictures):
        return ((pictures.clamp(-1, 1) - target) ** 2).sum(dim=(1, 2, 3))

    best = np.zeros(keys.shape)
    while taken < steps and not done.all():
        before = time.perf_counter()
        for _ in range(min(10, steps - taken)):
            step(problem, state, distance)
            taken += 1
        # A batch's time, shared among its images; those that were done pay nothing.
        seconds += np.where(done, 0, (time.perf_counter() - before) / len(keys))
        right = problem.bits(state[0].detach()) == keys
        best = np.where(done[:, None], best, right)
        done |= right.all(axis=1)
    return float(seconds.mean()), int(done.sum()), float(best.mean()), taken


def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, choices=(32, 256), default=32)
    parser.add_argument("--num_images", type=int, default=16)
    parser.add_argument("--scheme", help="for 32 pixels; the default one by default")
    parser.add_argument("--rounds", type=int, default=2, help="turns of all three")
    parser.add_argument("--published_steps", type=int, default=20, help="measured in a turn")
    parser.add_argument("--variant_steps", type=int, default=2000, help="at most")
    parser.add_argument("--json", default=None)
    args = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if args.size == 32:
        scheme = fpjax.load_scheme(args.scheme or "avatars-stylegan2")
    elif args.scheme:
        parser.error("--scheme is for 32 pixels: larger generators have schemes of their own")
    else:
        scheme = large_scheme(random_generator(args.size, MODULATION), FITTED)
    keys = fpjax.sample_keys(jax.random.key(2), args.num_images, scheme.key_length)
    files = fpjax.generate(scheme, jax.random.key(3), keys).images
    problem = TorchProblem(scheme)
    target = torch.from_numpy(files.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2).contiguous()
    weights = torch_weights(init_lpips(jax.random.key(0)))
    fpjax.invert(fpjax.Problem(scheme), files[:1])  # compiles
    rows = []
    for turn in range(args.rounds):
        row = {"turn": turn}
        row["published_step"] = published(problem, target, weights, args.published_steps)
        row["published_seconds"] = row["published_step"] * PUBLISHED_STEPS
        row["published_peak_mib"] = peak_mib()
        found = variant(problem, target, keys, args.variant_steps)
        row |= dict(zip(("variant_seconds", "variant_exact", "variant_bits"), found, strict=False))
        row["variant_steps"] = found[3]
        row["variant_peak_mib"] = peak_mib()
        before = time.perf_counter()
        solution = fpjax.invert(fpjax.Problem(scheme), files)
        row["fpjax_seconds"] = (time.perf_counter() - before) / len(keys)
        right = solution.keys == keys
        row |= {"fpjax_exact": int(right.all(axis=1).sum()), "fpjax_bits": float(right.mean())}
        row |= {"fpjax_jacobians": float(solution.steps.mean()), "fpjax_peak_mib": peak_mib()}
        row["published_over_fpjax"] = row["published_seconds"] / row["fpjax_seconds"]
        row["variant_over_fpjax"] = row["variant_seconds"] / row["fpjax_seconds"]
        rows.append(row)
        print(json.dumps(row), flush=True)
        report = {
            "size": args.size,
            "scheme": scheme.id,
            "images": len(keys),
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "rows": rows,
        }
        if args.json:
            Path(args.json).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

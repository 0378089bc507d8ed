"""A slope inside a loop, as differentiation leaves it and with its kernels in order.

    python benchmarks/loop_slopes.py [--steps 20] [--repeats 5]

Milliseconds a slope (a forward and a backward pass of one picture, by its latent) of the bundled
generators: alone; in a loop; in a loop with `canonical_convolutions`. The median over repeats.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time

import jax
import jax.numpy as jnp

import fpjax
from fpjax.models.canonical import canonical_convolutions


def slope(latent, generator):
    """Of the sum of a picture's squares."""

    def total(latent):
        return jnp.square(generator.decode(generator.params, latent)).sum()

    return jax.grad(total)(latent)


@functools.partial(jax.jit, static_argnums=(0, 1))
def repeated(function, steps: int, latent, generator):
    """Steps along slopes, in a loop."""
    return jax.lax.fori_loop(0, steps, lambda _, x: x - 1e-9 * function(x, generator), latent)


def milliseconds(function, *operands, repeats: int, count: int) -> float:
    """Median over repeats of the time of one of `count`."""
    jax.block_until_ready(function(*operands))
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(function(*operands))
        times.append(1e3 * (time.perf_counter() - started) / count)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print(f"{'generator':20s} {'alone':>8s} {'loop':>8s} {'in order':>8s}")
    for name in ("avatars-stylegan2", "avatars-ldm"):
        generator = fpjax.load_generator(name)
        if name == "avatars-ldm":
            generator = generator.with_noise("unquantized")
        operands = jnp.zeros((1, *generator.latent_shape)), generator
        found = [milliseconds(jax.jit(slope), *operands, repeats=20, count=1)]
        for one in (slope, canonical_convolutions(slope)):
            loop = functools.partial(repeated, one, args.steps)
            found.append(milliseconds(loop, *operands, repeats=args.repeats, count=args.steps))
        print(f"{name:20s} {found[0]:8.1f} {found[1]:8.1f} {found[2]:8.1f}")


if __name__ == "__main__":
    main()

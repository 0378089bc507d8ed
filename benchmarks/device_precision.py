"""What a device's own precision of products does to pictures, and that fpjax does not depend on it.

    python benchmarks/device_precision.py [--scheme avatars-stylegan2] [--num_images 64]

Pictures with keys are decoded on JAX's default device by fpjax, and by a program of the user's own
without a word about precision; both are compared with the CPU's, in units of the noise that
rounding to 8 bits leaves. On a CPU all of it is about zero.
"""

from __future__ import annotations

import argparse

import jax
import jax.numpy as jnp
import numpy as np

import fpjax
from fpjax.fingerprint.decode import decode_images
from fpjax.inversion.observation import ROUNDING_STD


@jax.jit
def plainly(generator, latents):
    """As a program decodes that knows nothing of precision."""
    return jnp.clip(generator.decode(generator.params, latents), -1, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scheme", default="avatars-stylegan2")
    parser.add_argument("--num_images", type=int, default=64)
    args = parser.parse_args()
    scheme = fpjax.load_scheme(args.scheme)
    keys = fpjax.sample_keys(jax.random.key(1), args.num_images, scheme.key_length)
    latents = fpjax.generate(scheme, jax.random.key(0), keys).latents
    generator, cpu = scheme.generator, jax.devices("cpu")[0]
    with jax.default_device(cpu):
        expected = decode_images(jax.device_put(generator, cpu), latents)
    found = {
        "fpjax": decode_images(generator, latents),
        "the device's default": np.asarray(plainly(generator, jnp.asarray(latents))),
    }
    print(jax.devices()[0])
    for name, images in found.items():
        error = np.abs(images - expected) / ROUNDING_STD
        print(f"{name:20s} {np.sqrt(np.mean(error**2)):9.4f} (rms) {error.max():9.4f} (most)")


if __name__ == "__main__":
    main()

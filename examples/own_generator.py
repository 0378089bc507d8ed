"""Another person's generator: keys in the faces of a DCGAN that nobody here trained.

    pip install --no-deps gan-face-generate==1.1.1   # its weights; 14 MB, no torch needed
    python examples/own_generator.py [FOLDER]

The network is the one of Radford et al., "Unsupervised Representation Learning with Deep
Convolutional Generative Adversarial Networks" (ICLR 2016): a 100-d normal latent, five transposed
convolutions, 64 x 64 faces. Everything fpjax needs to know of it is the `fpjax.Generator` below.
"""

import dataclasses
import importlib.util
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fpjax
from checkpoints_convert import readers

SIZE, NUM_LAYERS = 100, 5
KEY_LENGTH, NUM_IMAGES = 32, 16
STRENGTH = 0.7
"""How much a bit changes a picture, as the root of the summed squares; values in [-1, 1]."""


def weights_file() -> Path | None:
    """The file of the installed package, which is not imported (that would take torch)."""
    package = importlib.util.find_spec("gan_face_generate")
    if package is None or not package.submodule_search_locations:
        return None
    return Path(package.submodule_search_locations[0]) / "weights.tar"


def read_params(path: Path) -> dict[str, Any]:
    """Weights of the layers, kernels as (height, width, in, out); batch norms folded into them."""
    tree = readers.read(path).tree
    state: Mapping[str, Any] = tree["netG_state_dict"]
    params = {}
    for i in range(NUM_LAYERS):
        # PyTorch stores a transposed convolution's kernel as (in, out, height, width).
        kernel = state[f"main.{3 * i}.weight"].numpy().transpose(2, 3, 0, 1)
        bias = np.zeros(kernel.shape[3], np.float32)
        if i < NUM_LAYERS - 1:
            norm = {
                name: state[f"main.{3 * i + 1}.{name}"].numpy()
                for name in ("weight", "bias", "running_mean", "running_var")
            }
            scale = norm["weight"] / np.sqrt(norm["running_var"] + np.float32(1e-5))
            kernel, bias = kernel * scale, norm["bias"] - norm["running_mean"] * scale
        # A transposed convolution is a convolution of the spread input with the turned kernel.
        params[f"layer{i}"] = {"kernel": kernel[::-1, ::-1].copy(), "bias": bias}
    return jax.device_put(params)


def upsample(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Transposed convolution of stride 2: each parity of row and column meets 2 x 2 taps."""
    batch, height, width, _ = x.shape
    parts = [
        jax.lax.conv_general_dilated(
            x,
            kernel[row::2, column::2],
            window_strides=(1, 1),
            padding=((1 - row, row), (1 - column, column)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        for row in (0, 1)
        for column in (0, 1)
    ]
    grid = jnp.stack(parts, axis=3).reshape(batch, height, width, 2, 2, -1)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, -1)


def decode(params: Mapping[str, Any], latents: jax.Array) -> jax.Array:
    """Latents (B, 100) -> faces (B, 64, 64, 3) in [-1, 1]."""
    x = jnp.einsum("bi,hwio->bhwo", latents, params["layer0"]["kernel"][::-1, ::-1])
    for i in range(NUM_LAYERS):
        layer = params[f"layer{i}"]
        if i > 0:
            x = upsample(jax.nn.relu(x), layer["kernel"])
        x = x + layer["bias"][None, None, None]
    return jnp.tanh(x)


def sample(params: Mapping[str, Any], key: jax.Array, num: int) -> jax.Array:
    """Natural latents are standard normal."""
    del params
    return jax.random.normal(key, (num, SIZE), jnp.float32)


def make() -> fpjax.Generator:
    """The generator; `fpjax scheme create --generator examples/own_generator.py:make` takes it."""
    path = weights_file()
    if path is None:
        raise SystemExit("pip install --no-deps gan-face-generate==1.1.1")
    return fpjax.Generator(
        decode=decode,
        params=read_params(path),
        latent_shape=(SIZE,),
        image_shape=(64, 64, 3),
        sample_latents=sample,
        name="dcgan-faces",
    )


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of it."""

    exact_keys: int
    named: int
    psnr_of_symbols: float
    """Decibels, against the same pictures with every symbol at zero: what the bits cost."""
    psnr_of_key: float
    """Decibels, against the natural pictures. Latents here are equally likely in all directions,
    and a key takes 32 of the 100: that these no longer vary is most of the change."""


def psnr_db(a: np.ndarray, b: np.ndarray) -> float:
    """Mean PSNR of pictures with values in 0 to 255, in decibels."""
    error = np.mean((a.astype(float) - b.astype(float)) ** 2, axis=(1, 2, 3))
    return float(np.mean(10 * np.log10(255**2 / error)))


def main(folder: str) -> Result:
    """Writes 16 pictures with keys of 16 users into a folder and reads them back."""
    generator = make()
    fpjax.check_generator(generator)
    basis = fpjax.fit_basis(generator, jax.random.key(0), 5000, num_jacobians=8)
    scheme = fpjax.Scheme.create(generator, basis, KEY_LENGTH, strength=STRENGTH)
    scheme = fpjax.calibrate(
        scheme, jax.random.key(1), num_start_images=8000, num_inverted_images=4
    )
    with fpjax.Registry.create(
        f"{folder}/users.db", key_length=KEY_LENGTH, scheme_id=scheme.id
    ) as registry:
        users = [f"user{i}" for i in range(NUM_IMAGES)]
        # Of a seed, so that every run of the example is the same; `issue(user)` draws secret ones.
        keys = fpjax.sample_keys(jax.random.key(3), NUM_IMAGES, KEY_LENGTH)
        for user, key in zip(users, keys, strict=True):
            registry.issue(user, key=key)
        made = fpjax.generate(scheme, jax.random.key(2), keys)
        files = made.save(f"{folder}/pictures")
        images = np.stack([fpjax.load_image(file, generator.image_shape) for file in files])
        found = fpjax.attribute(scheme, images, registry, false_positive_rate=1e-3)
    named = [verdict.user for verdict in found.verdicts or ()]
    assert made.originals is not None
    silent = scheme.latents_of(jnp.asarray(made.alpha), jnp.zeros(keys.shape, jnp.float32))
    silent = np.asarray(jnp.clip(scheme.decode(silent), -1, 1)) * 127.5 + 127.5
    result = Result(
        exact_keys=int((found.keys == keys).all(axis=1).sum()),
        named=sum(user == owner for user, owner in zip(named, users, strict=True)),
        psnr_of_symbols=psnr_db(silent, made.images),
        psnr_of_key=psnr_db(made.originals, made.images),
    )
    print(
        f"{result.exact_keys} of {NUM_IMAGES} keys exact, {result.named} users named; PSNR "
        f"{result.psnr_of_symbols:.1f} dB for the bits, {result.psnr_of_key:.1f} dB in all"
    )
    return result


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="fpjax-"))

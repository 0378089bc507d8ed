"""What becomes of the key in pictures of issued copies, and what attackers can do about it.

    python benchmarks/copies.py [--num 4] [--users 1000] [--scheme NAME] \\
        [--only WORDS] [--json FILE]

On the bundled generator and one of its schemes, with random keys. A row is how pictures were made;
its columns say how many were attributed to their user (or to one of the colluders), to nobody, and
to an innocent user, at a false-positive rate of 1e-6, and the share of key bits read right.

Rows "holder of the scheme" know the scheme and one picture of the victim, and no registry. In rows
"secret rotation" the scheme's directions are turned by one, and the attacker has the directions as
anyone with the generator can fit them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fpjax
from fpjax.attribution.decision import decide
from fpjax.fingerprint.decode import decode_images
from fpjax.fingerprint.issued import issue_model
from fpjax.fingerprint.rotation import rotated, secret_rotation
from fpjax.io.images import to_uint8


class Case(NamedTuple):
    """Pictures (num, H, W, C) uint8, the users whose keys went into them, and who reads them."""

    name: str
    images: np.ndarray
    users: tuple[int, ...]
    reader: fpjax.Scheme | None = None
    """By default the scheme they were made with."""


@jax.jit
def render(copy, latents, key):
    """Images of a copy whose noise maps are drawn afresh."""
    return copy.decode(copy.params, latents, noise=key)


def mean_of(trees):
    """Leaf-wise mean of parameter trees."""
    return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]) / len(leaves), *trees)


def turned(scheme, rotation):
    """A scheme whose fingerprint directions are rotated, and its start with them."""
    calibration = scheme.calibration
    start = calibration.start
    free = scheme.num_alpha

    def turn(part, side):
        made = np.array(part, np.float32)
        if side == "columns":
            made[..., free:] = made[..., free:] @ rotation.T
        else:
            made[free:] = rotation @ made[free:]
        return made

    start = dataclasses.replace(
        start,
        weight=turn(start.weight, "columns").astype(np.float16),
        bias=turn(start.bias, "columns"),
        forward=None if start.forward is None else turn(start.forward, "rows").astype(np.float16),
    )
    return scheme.replace(
        basis=rotated(scheme.basis, scheme.shift, rotation),
        calibration=dataclasses.replace(calibration, start=start),
    )


def rotated_cases(plain, keys, num: int) -> Iterator[Case]:
    """What a secret rotation keeps from a holder of the generator, who fits directions again."""
    secret = turned(plain, secret_rotation(plain.num_symbols))
    made = fpjax.generate(secret, jax.random.key(21), np.repeat(keys[:1], num, axis=0))
    yield Case("secret rotation: the owner reads", made.images, (0,), secret)
    yield Case("secret rotation: directions fitted again read", made.images, (0,), plain)
    seen = fpjax.attribute(plain, made.images).solution
    shift = np.mean(2 * seen.soft_bits - 1, axis=0)  # of all the victim's pictures at hand
    other = plain.generator.natural_latents(jax.random.key(22), num)
    latents = jax.jit(lambda s, w, k: s.latents_of(s.project(w), k))(
        plain.without_calibration(), other, np.repeat(shift[None], num, axis=0).astype(np.float32)
    )
    forged = to_uint8(decode_images(plain.generator, latents))
    yield Case(f"secret rotation: shift of {num} pictures copied", forged, (0,), secret)
    zero = np.zeros((num, plain.num_symbols), np.float32)
    latents = jax.jit(lambda s, a, k: s.latents_of(a, k))(
        plain.without_calibration(), seen.alpha, zero
    )
    removed = to_uint8(decode_images(plain.generator, latents))
    yield Case("secret rotation: shift set to 0", removed, (0,), secret)


def cases(scheme, keys, num: int) -> Iterator[Case]:
    """Copies' pictures first, then attacks."""
    copies = [issue_model(scheme, key) for key in keys[:8]]
    copy, draw = copies[0], jax.random.key(11)
    w = np.asarray(copy.natural_latents(draw, num))
    pictures = to_uint8(decode_images(copy, w))
    yield Case("a copy's pictures", pictures, (0,))
    average = np.asarray(copy.params["mapping"]["w_avg"])
    yield Case("truncation 0.5", to_uint8(decode_images(copy, average + 0.5 * (w - average))), (0,))
    layers = copy.config.num_layers
    for crossover in (layers // 2, layers - 2):
        mixed = np.repeat(w[:, None], layers, axis=1)
        mixed[:, crossover:] = np.roll(w, 1, axis=0)[:, None]
        made = jax.jit(lambda c, latents: c.decode(c.params, latents))(copy, mixed)
        yield Case(
            f"styles mixed from layer {crossover} of {layers}", to_uint8(np.asarray(made)), (0,)
        )
    made = render(copy, jnp.asarray(w), jax.random.key(5))
    yield Case("noise maps drawn afresh", to_uint8(np.asarray(made)), (0,))

    read = fpjax.attribute(scheme, pictures)
    others = fpjax.generate(scheme, jax.random.key(12), read.keys)
    yield Case("holder of the scheme writes a key that was read", others.images, (0,))
    zero = np.zeros((num, scheme.key_length), np.float32)
    latents = jax.jit(lambda s, a, k: s.latents_of(a, k))(
        scheme.without_calibration(), read.solution.alpha, zero
    )
    yield Case(
        "holder of the scheme sets the symbols to 0",
        to_uint8(decode_images(scheme.generator, latents)),
        (0,),
    )
    yield from rotated_cases(scheme, keys, num)
    # Copies are affine in their keys: averaging weights is averaging latents.
    for count in range(2, 9):
        params = mean_of([each.params for each in copies[:count]])
        blend = to_uint8(decode_images(copy.replace(params=params), w))
        yield Case(f"weights of {count} copies averaged", blend, tuple(range(count)))
        pixels = np.mean([decode_images(each, w) for each in copies[:count]], axis=0)
        yield Case(f"pictures of {count} copies averaged", to_uint8(pixels), tuple(range(count)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num", type=int, default=4, help="pictures of each kind")
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--scheme", default="avatars-stylegan2")
    parser.add_argument(
        "--only", default="", help="rows whose names have one of these words, between commas"
    )
    parser.add_argument("--json", default=None)
    args = parser.parse_args()
    scheme = fpjax.load_scheme(args.scheme)
    keys = fpjax.sample_keys(jax.random.key(1), args.users, scheme.key_length)
    names = [str(user) for user in range(args.users)]
    rows, first = [], None
    for case in cases(scheme, keys, args.num):
        first = case.images if first is None else first
        if not any(word in case.name for word in args.only.split(",")):
            continue
        solution = fpjax.attribute(case.reader or scheme, case.images).solution
        verdicts = decide(solution, names, keys, levels=scheme.levels)
        named = [verdict.user for verdict in verdicts]
        right = {str(user) for user in case.users}
        error = np.mean((case.images.astype(np.float64) - first) ** 2)
        rows.append(
            {
                "scheme": scheme.id,
                "pictures": case.name,
                "attributed": sum(name in right for name in named),
                "nobody": sum(name is None for name in named),
                "innocent": sum(name not in right and name is not None for name in named),
                "of": len(named),
                "bits_of_user_0": float(np.mean(solution.keys == keys[:1])),
                "median_p": float(np.median([verdict.p_value for verdict in verdicts])),
                "residual": float(np.median(solution.noise_ratio)),
                "psnr_to_first_row": float(10 * np.log10(255**2 / error)) if error else None,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=2)
            file.write("\n")


if __name__ == "__main__":
    main()

"""Does an attacker who holds the generator, but no key, remove fingerprints?

    python benchmarks/adversarial.py [--scheme avatars-stylegan2/robust] [--num_images 24]
                                     [--psnr 40,35,30] [--steps 50]

He knows the latent of his picture exactly, which is more than an inversion would tell him, and
looks for another far away whose picture is the same but for the stated PSNR
(`fpjax.attacks.adversarial`). Beside that stands a random step of the same PSNR (0 gradient steps).
Said of each: the share of right bits, and of pictures attributed to their maker and to others
among 1,000 users at a family-wise rate of 1e-6, read with `observation="auto"`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import jax
import numpy as np

import fpjax
from fpjax.attacks.adversarial import adversarial
from fpjax.attribution.registry import Registry
from fpjax.fingerprint.keys import unpack_words

USERS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scheme", default="avatars-stylegan2/robust")
    parser.add_argument("--num_images", type=int, default=24)
    parser.add_argument("--psnr", default="40,35,30", help="of the attack, in dB")
    parser.add_argument("--steps", type=int, default=50, help="gradient steps")
    args = parser.parse_args()
    scheme = fpjax.load_scheme(args.scheme)
    generator = scheme.generator
    natural = generator.sample_latents(generator.params, jax.random.key(1), 1000)
    scale = jax.numpy.std(natural, axis=0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "users.db"
        with Registry.create(path, key_length=scheme.key_length, scheme_id=scheme.id) as registry:
            for user in range(USERS):
                registry.issue(f"user-{user}", rng=np.random.default_rng((0, user)))
            users, words = registry.words()
            keys = unpack_words(words[: args.num_images], scheme.key_length).astype(np.uint8)
            made = fpjax.generate(scheme, jax.random.key(6), keys)
            print(f"{'attack':28s} {'PSNR':>5s} {'bits':>6s} {'right':>6s} {'wrong':>6s}")
            for psnr in map(float, args.psnr.split(",")):
                for steps in (0, args.steps):
                    found = adversarial(
                        generator.decode, generator.params, made.latents, jax.random.key(7),
                        budget=2 * 10 ** (-psnr / 20), scale=scale, steps=steps,
                    )  # fmt: skip
                    answers = fpjax.attribute(scheme, found.images, registry, observation="auto")
                    named = np.array([verdict.user or "" for verdict in answers.verdicts])
                    right = np.mean(named == np.array(users[: len(named)]))
                    wrong = np.mean(named != "") - right
                    bits = np.mean(answers.keys == keys)
                    name = f"{steps} gradient steps" if steps else "a random step"
                    reached = np.mean(-20 * np.log10(found.change / 2))
                    print(
                        f"{name:28s} {reached:5.1f} {bits:6.3f} {right:6.2f} {wrong:6.2f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()

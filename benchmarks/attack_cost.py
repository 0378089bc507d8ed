"""What an attacked file costs to attribute, beside a clean one, once everything is compiled.

    python benchmarks/attack_cost.py [--scheme avatars-stylegan2/robust] [--num_images 8]
                                     [--attack ATTACK ...]

Seconds of all cores together, a file, of `fpjax.attribute(scheme, files, observation="auto")`, the
second time, and their ratio to those of clean files. What was right of the keys' bits stands beside
it, so that nothing is cheap for having given up.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

import fpjax
from fpjax.attacks import parse
from fpjax.attribution.pictures import read_picture
from fpjax.studies.histories import file_of
from fpjax.studies.robustness import DEFAULT_ATTACKS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scheme", default="avatars-stylegan2/robust")
    parser.add_argument("--num_images", type=int, default=8)
    parser.add_argument("--attack", action="append", help="default: those of a robustness study")
    args = parser.parse_args()
    scheme = fpjax.load_scheme(args.scheme)
    shape = scheme.generator.image_shape
    keys = fpjax.sample_keys(jax.random.key(5), args.num_images, scheme.key_length)
    made = fpjax.generate(scheme, jax.random.key(6), keys).images
    attacks = dict.fromkeys(["none", *(args.attack or DEFAULT_ATTACKS)])
    print(f"{'attack':64s} {'core s':>7s} {'ratio':>6s} {'bits':>6s}")
    clean = None
    with tempfile.TemporaryDirectory() as folder:
        for attack in attacks:
            files = []
            for row, image in enumerate(made):
                key = jax.random.fold_in(jax.random.key(7), row)
                data, suffix = file_of(parse(attack), key, image)
                files.append(Path(folder) / f"{row}{suffix}")
                files[-1].write_bytes(data)
            pictures = [read_picture(file, shape) for file in files]
            fpjax.attribute(scheme, pictures, observation="auto")
            started = time.process_time()
            found = fpjax.attribute(scheme, pictures, observation="auto")
            spent = (time.process_time() - started) / len(files)
            clean = spent if clean is None else clean
            right = float(np.mean(found.keys == keys))
            print(f"{attack:64s} {spent:7.2f} {spent / clean:6.1f} {right:6.3f}", flush=True)


if __name__ == "__main__":
    main()

"""Attacked files that carry no registered key: how many are attributed, and how small p-values get.

    python benchmarks/keyless_files.py --out FOLDER [--num 2000] [--first 0] [--kind KIND ...]
                                       [--scheme avatars-stylegan2/robust]

Pictures in equal parts: of the bundled generator without a key, with random keys that are not
registered, and drawings that it was not trained on; with --kind, only those of these kinds among
the numbers from FIRST to FIRST + NUM - 1. Each has one of the attacks of the robustness study, in
turn, is written as a file, and is read back with `observation="auto"` beside 1,000
registered users at a family-wise rate of 1e-6. The answer of every file is a line of
FOLDER/files.jsonl, eight at a time; the same command goes on after a stop, with other numbers and
kinds too, and reports on all lines. Parts may be made at the same time in folders of their own
(`--first 1000 --num 1000`): their lines, put together, are those of all. The report counts
attributions, and compares the family-wise p-values with what they promise: that at most a share p
of them is p or less.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

import fpjax
from fpjax.attacks import parse
from fpjax.attribution.pictures import read_picture
from fpjax.fingerprint.decode import natural_images
from fpjax.io.atomic import atomic_write
from fpjax.studies.histories import file_of
from fpjax.studies.robustness import DEFAULT_ATTACKS
from fpjax.training.avatars import render_avatar

KINDS = ("without a key", "other keys", "drawings")
BATCH = 8


def picture(scheme: fpjax.Scheme, number: int) -> tuple[str, str, bytes, str]:
    """Kind, attack, file and suffix of file `number`; the same in every run."""
    kind = KINDS[number % len(KINDS)]
    attack = DEFAULT_ATTACKS[number // len(KINDS) % len(DEFAULT_ATTACKS)]
    key = jax.random.fold_in(jax.random.key(10), number)
    if kind == "without a key":
        image = natural_images(scheme.generator, key, 1)[0]
    elif kind == "other keys":
        keys = fpjax.sample_keys(jax.random.fold_in(key, 1), 1, scheme.key_length)
        image = fpjax.generate(scheme, key, keys).images[0]
    else:
        image = render_avatar(f"keyless-{number}", scheme.generator.image_shape[0])
    # A key of its own: with the latent's, noise would begin with the latent's numbers.
    own = jax.random.fold_in(key, 2)
    data, suffix = file_of(parse(attack), own, np.asarray(image, np.uint8))
    return kind, attack, data, suffix


def answers(scheme, registry, numbers: list[int], folder: Path) -> list[dict]:
    """One record a file."""
    started = time.monotonic()
    made = [picture(scheme, number) for number in numbers]
    pictures = []
    for i, (_, _, data, suffix) in enumerate(made):
        path = folder / f"{i}{suffix}"
        path.write_bytes(data)
        pictures.append(read_picture(path, scheme.generator.image_shape, resize=True))
    found = fpjax.attribute(scheme, pictures, registry, observation="auto")
    seconds = (time.monotonic() - started) / len(numbers)
    return [
        {
            "number": number,
            "kind": kind,
            "attack": attack,
            "user": verdict.user,
            "p_value": float(verdict.p_value),
            "finding": verdict.finding,
            "seconds": round(seconds, 3),
        }
        for number, (kind, attack, _, _), verdict in zip(numbers, made, found.verdicts, strict=True)
    ]


def summary(rows: list[dict]) -> dict:
    p = np.array([row["p_value"] for row in rows])
    return {
        "files": len(rows),
        "attributed": sum(row["user"] is not None for row in rows),
        "least_p": float(p.min()),
        "share_of_p_below": {
            f"{limit:g}": float((p <= limit).mean()) for limit in (0.5, 0.1, 0.01)
        },
        "seconds_a_file": float(np.mean([row["seconds"] for row in rows])),
        "by_kind": {
            kind: [
                sum(row["user"] is not None for row in rows if row["kind"] == kind),
                sum(row["kind"] == kind for row in rows),
            ]
            for kind in KINDS
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--num", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    parser.add_argument("--kind", action="append", choices=KINDS, help="default: all")
    parser.add_argument("--scheme", default="avatars-stylegan2/robust")
    parser.add_argument("--users", type=int, default=1000)
    args = parser.parse_args()
    if args.first < 0:
        parser.error(f"--first {args.first}: expected 0 or more")
    scheme = fpjax.load_scheme(args.scheme)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "users.db"
    if path.exists():
        registry = fpjax.Registry.open(path, scheme_id=scheme.id)
    else:
        registry = fpjax.Registry.create(path, key_length=scheme.key_length, scheme_id=scheme.id)
    with registry:
        if len(registry) > args.users:
            raise SystemExit(f"{path} has {len(registry)} users: ask for as many, or begin anew")
        for user in range(len(registry), args.users):
            registry.issue(f"user-{user}", rng=np.random.default_rng((10, user)))
        lines = args.out / "files.jsonl"
        text = lines.read_text(encoding="utf-8") if lines.exists() else ""
        whole = text[: text.rfind("\n") + 1]  # a last line may be cut short
        rows = [json.loads(line) for line in whole.splitlines()]
        with atomic_write(lines, "w") as file:
            file.write(whole)
        with tempfile.TemporaryDirectory() as folder:
            done = {row["number"] for row in rows}
            kinds = args.kind or KINDS
            wanted = range(args.first, args.first + args.num)
            left = [n for n in wanted if n not in done and KINDS[n % len(KINDS)] in kinds]
            for begin in range(0, len(left), BATCH):
                new = answers(scheme, registry, left[begin : begin + BATCH], Path(folder))
                with lines.open("a", encoding="utf-8") as file:
                    file.write("".join(json.dumps(row) + "\n" for row in new))
                rows += new
                print(f"{begin + len(new)} of {len(left)}", file=sys.stderr, flush=True)
    print(json.dumps({"scheme": args.scheme, **summary(rows)}, indent=2))


if __name__ == "__main__":
    main()

"""Search of 10^6 to 10^9 keys: fpjax against faiss's flat binary index and NumPy, in one run.

    python benchmarks/key_search.py                        # 10^6, 10^7 and 10^8 keys, a few minutes
    python benchmarks/key_search.py --keys 1e9 --batches 1,16   # 8 GB stored, twice that for faiss
    python benchmarks/key_search.py --derived 1e9 --keys ""     # 10^9 keys that are never stored

For each number of keys and images: seconds on the clock and of all cores (the best of the repeats;
on a busy machine the second says more), pairs of key and image per second, bytes of keys read per
second as a share of the memory bandwidth, measured before and after in the same run, and the peak
memory of the process while searching, which holds the keys and faiss's copy of them.
All find the same nearest distances, which is checked. JSON goes to --out or to the standard output.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import platform
import sys
import time
from pathlib import Path

import jax
import numpy as np

from fpjax.attribution.search import StoredKeys, search_matching, search_soft
from fpjax.fingerprint.derived import DerivedKeys
from fpjax.fingerprint.packed import pack_keys, unpack_keys

LENGTH = 64
NUM_BEST = 10


def peak_memory(reset: bool = False) -> float | None:
    """Peak resident memory in GB since the last reset, where Linux tells it."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
            return None
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9
    except (OSError, IndexError):
        return None


def timed(function, repeats: int) -> tuple[tuple[float, float], object]:
    """Least seconds on the clock and of all cores; short calls are repeated more often."""
    function()  # compiles, and faults pages in
    clock, cores, result = [], [], None
    while len(clock) < repeats or (sum(clock) < 0.1 * repeats and len(clock) < 50):
        start, worked = time.perf_counter(), time.process_time()
        result = function()
        clock.append(time.perf_counter() - start)
        cores.append(time.process_time() - worked)
    return (min(clock), min(cores)), result


def bandwidth(words: np.ndarray, repeats: int) -> float:
    """Bytes per second at which all cores read the keys, by NumPy's maximum."""
    step = 1 << 20
    blocks = [words[i : i + step] for i in range(0, len(words), step)]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        (seconds, _), _ = timed(lambda: list(pool.map(np.max, blocks)), 2 * repeats)
    return words.nbytes / seconds


def numpy_search(words: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Least distances (B, NUM_BEST), in blocks that stay in cache."""
    best = np.full((len(queries), 0), 255, np.uint8)
    for start in range(0, len(words), 1 << 16):
        block = words[start : start + (1 << 16)]
        found = np.stack([np.bitwise_count(block ^ query) for query in queries])
        kept = min(NUM_BEST, found.shape[1]) - 1
        best = np.concatenate([best, np.partition(found, kept, axis=1)[:, : kept + 1]], axis=1)
        best = np.partition(best, kept, axis=1)[:, : kept + 1]
    return np.sort(best, axis=1)


def queries_near(bits: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Decoded bits (count, L): registered keys with 12 wrong bits each."""
    found = bits[np.arange(count) % len(bits)].copy()
    for row in found:
        row[rng.choice(LENGTH, 12, replace=False)] ^= 1
    return found


class Report:
    def __init__(self) -> None:
        self.rows: list[dict] = []

    def add(self, name, keys, images, times, bytes_per_second=None, **more) -> None:
        seconds, core_seconds = times
        row = {
            "method": name,
            "keys": keys,
            "images": images,
            "seconds": seconds,
            "core_seconds": core_seconds,
            "keys_per_second": keys / seconds,
            "pairs_per_second": keys * images / seconds,
            "bandwidth_share": bytes_per_second and keys * LENGTH / 8 / seconds / bytes_per_second,
            "peak_memory_gb": peak_memory(),
            **more,
        }
        self.rows.append(row)
        share = row["bandwidth_share"]
        print(
            f"{name:14s} {keys:>13,} keys x {images:>3} images {seconds:9.4f} s "
            f"{core_seconds:9.4f} core s "
            f"{row['pairs_per_second'] / 1e6:10,.0f} M pairs/s"
            + (f" {share:6.1%} of bandwidth" if share else ""),
            file=sys.stderr,
            flush=True,
        )


def stored(report, num_keys, batches, args, rng) -> None:
    words = np.frombuffer(rng.bytes(8 * num_keys), np.uint64)
    source = StoredKeys(words, LENGTH)
    index = None
    if args.faiss:
        import faiss

        index = faiss.IndexBinaryFlat(LENGTH)
        index.add(words.view(np.uint8).reshape(-1, 8))
    speed = bandwidth(words, args.repeats)
    known = unpack_keys(words[: max(batches)].view(np.uint32).reshape(-1, 2), LENGTH)
    for images in batches:
        bits = queries_near(known, images, rng)
        queries = pack_keys(bits).view(np.uint64)[:, 0]
        peak_memory(reset=True)
        times, found = timed(
            lambda bits=bits: search_matching(source, bits, num_best=NUM_BEST), args.repeats
        )
        speed = max(speed, bandwidth(words, args.repeats))
        more = {"bandwidth_gb_per_second": speed / 1e9}
        report.add("fpjax stored", num_keys, images, times, speed, **more)
        distances = LENGTH - found.scores
        if index is not None and num_keys * images <= args.limit:
            peak_memory(reset=True)
            octets, runs = queries.view(np.uint8).reshape(-1, 8), []
            # One thread is the better one for a single image, and on a busy machine.
            for threads in {1, os.cpu_count()}:
                faiss.omp_set_num_threads(threads)
                runs.append(timed(lambda o=octets: index.search(o, NUM_BEST), args.repeats))
            times, result = min(runs, key=lambda run: run[0][0])
            report.add("faiss", num_keys, images, times, speed, **more)
            assert (np.sort(result[0], axis=1) == distances).all(), "faiss disagrees"
        if num_keys * images <= args.limit / 10:
            peak_memory(reset=True)
            times, result = timed(lambda q=queries: numpy_search(words, q), 1)
            report.add("NumPy", num_keys, images, times, speed, **more)
            assert (result == distances).all(), "NumPy disagrees"


def derived(report, num_keys, batches, args, rng) -> None:
    source = DerivedKeys(bytes(range(32)), num_keys, LENGTH)
    known = source.keys(rng.integers(0, num_keys, max(batches)))
    warm = DerivedKeys(bytes(range(32)), min(num_keys, 1 << 22), LENGTH)
    for images in batches:
        bits = queries_near(known, images, rng)
        search_matching(warm, bits, num_best=NUM_BEST)  # compiles
        peak_memory(reset=True)
        start, worked = time.perf_counter(), time.process_time()
        search_matching(source, bits, num_best=NUM_BEST)
        times = time.perf_counter() - start, time.process_time() - worked
        report.add("fpjax derived", num_keys, images, times)


def soft(report, num_keys, batches, args, rng) -> None:
    """Information of about 75 bits, as at noise 0.1; the right keys are registered."""
    words = np.frombuffer(rng.bytes(8 * num_keys), np.uint64)
    source = StoredKeys(words, LENGTH)
    for images in batches:
        basis = np.linalg.qr(rng.normal(size=(images, LENGTH, LENGTH)))[0]
        spectrum = 10 ** rng.uniform(-0.5, 1.5, (images, 1, LENGTH))
        information = (basis * spectrum) @ basis.swapaxes(1, 2)
        bits = unpack_keys(words[:images].view(np.uint32).reshape(-1, 2), LENGTH)
        noise = np.sqrt(spectrum[:, 0]) * rng.normal(size=(images, LENGTH))
        linear = (information @ (2.0 * bits - 1)[..., None] + basis @ noise[..., None])[..., 0]
        peak_memory(reset=True)
        times, found = timed(
            lambda s=information, h=linear: search_soft(source, s, h, num_best=NUM_BEST), 1
        )
        right = float((found.indices[:, 0] == np.arange(images)).mean())
        report.add(
            "fpjax soft", num_keys, images, times, examined=found.examined, right_key_first=right
        )


def sizes(text: str) -> list[int]:
    return [int(float(part)) for part in text.split(",") if part]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keys", type=sizes, default=sizes("1e6,1e7,1e8"))
    parser.add_argument("--derived", type=sizes, default=sizes("1e8"))
    parser.add_argument("--soft", type=sizes, default=sizes("1e6,1e7"))
    parser.add_argument("--batches", type=sizes, default=[1, 16, 256])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=float, default=3e9, help="pairs that peers are given")
    parser.add_argument("--no-faiss", dest="faiss", action="store_false")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    report, rng = Report(), np.random.default_rng(0)
    for num_keys in args.keys:
        stored(report, num_keys, args.batches, args, rng)
    for num_keys in args.derived:
        derived(report, num_keys, [b for b in args.batches if b <= 16], args, rng)
    for num_keys in args.soft:
        soft(report, num_keys, [b for b in args.batches if b <= 16], args, rng)
    versions = {"numpy": np.__version__, "jax": jax.__version__}
    if args.faiss:
        import faiss

        versions["faiss"] = faiss.__version__
    machine = {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()}
    text = json.dumps(
        {
            "command": " ".join(sys.argv),
            "machine": machine,
            "load": os.getloadavg()[0],
            "versions": versions,
            "key_length": LENGTH,
            "num_best": NUM_BEST,
            "results": report.rows,
        },
        indent=1,
    )
    if args.out:
        args.out.write_text(text + "\n")
    else:
        print(text)


if __name__ == "__main__":
    main()

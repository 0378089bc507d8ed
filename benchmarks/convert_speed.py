"""Time and memory of reading every tensor of a torch checkpoint: these readers against torch.load.

    python benchmarks/convert_speed.py --gigabytes 1 --json speed.json

Each reader runs in its own process on the same synthetic file (float32 tensors of 16 MiB, written
by torch.save), once to warm the page cache and then `--repeats` times. Reading a tensor means
having it as a NumPy array and adding up its elements, so that mapped pages are really touched.
`peak_rss_mib` includes file pages that are mapped; `peak_private_mib` is the memory that the
process itself had to be given (sampled every 5 ms).
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TENSOR_BYTES = 16 << 20
READERS = ("fpjax", "torch", "torch_mmap")


def write_checkpoint(path: str, gigabytes: float) -> int:
    """Write the synthetic file; returns the bytes of its tensors."""
    import torch

    count = max(1, round(gigabytes * 1e9 / TENSOR_BYTES))
    shape = (TENSOR_BYTES // 4 // 512, 512)
    noise = torch.randn(shape)
    state = {f"layers.{index}.weight": noise + index for index in range(count)}
    torch.save({"state_dict": state, "step": 1}, path)
    return count * TENSOR_BYTES


def status_mib(field: str) -> int:
    """A memory figure of this process: "VmHWM" is the peak of all, "RssAnon" what is its own now.

    ru_maxrss will not do: it starts at what the parent had when it forked.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) // 1024
    raise SystemExit(f"this system does not state {field}; run the benchmark on Linux")


def measure(reader: str, path: str) -> dict:
    """Read every tensor once in this process, imports not counted."""
    if reader == "fpjax":
        sys.path.insert(0, str(ROOT))
        from checkpoints_convert.readers import read

        def arrays():
            for tensor in read(path).tensors("state_dict").values():
                yield tensor.numpy()
    else:
        import torch

        def arrays():
            loaded = torch.load(path, weights_only=True, mmap=reader == "torch_mmap")
            for tensor in loaded["state_dict"].values():
                yield tensor.numpy()

    peak, done = [status_mib("RssAnon")], threading.Event()

    def watch():
        while not done.wait(0.005):
            peak[0] = max(peak[0], status_mib("RssAnon"))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    before = status_mib("VmHWM")
    start = time.perf_counter()
    total, count = 0.0, 0
    for array in arrays():
        total += float(array.sum(dtype="f8"))
        count += 1
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    return {
        "seconds": seconds,
        "tensors": count,
        "sum": total,
        "rss_before_mib": before,
        "peak_rss_mib": status_mib("VmHWM"),
        "peak_private_mib": max(peak[0], status_mib("RssAnon")),
    }


def run(reader: str, path: str) -> dict:
    """`measure` in a fresh process."""
    command = [sys.executable, __file__, "--measure", reader, path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=1.0, help="10**9 bytes of tensors")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", help="write the report here too")
    parser.add_argument("--measure", nargs=2, metavar=("READER", "PATH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure)))
        return

    with tempfile.TemporaryDirectory(prefix="convert_speed_") as folder:
        path = os.path.join(folder, "checkpoint.pt")
        size = write_checkpoint(path, options.gigabytes)
        results = {}
        for reader in READERS:
            run(reader, path)
            trials = [run(reader, path) for _ in range(options.repeats)]
            best = min(trials, key=lambda trial: trial["seconds"])
            best["gigabytes_per_second"] = round(size / 1e9 / best["seconds"], 2)
            best["seconds_of_all"] = [round(trial["seconds"], 3) for trial in trials]
            results[reader] = best
    sums = {result["sum"] for result in results.values()}
    if len(sums) != 1:
        raise SystemExit(f"the readers disagree on the contents: {results}")
    report = {
        "benchmark": "convert_speed",
        "bytes": size,
        "machine": {"cpus": os.cpu_count(), "system": platform.platform()},
        "readers": results,
    }
    text = json.dumps(report, indent=2)
    print(text)
    if options.json:
        Path(options.json).write_text(text + "\n")


if __name__ == "__main__":
    main()

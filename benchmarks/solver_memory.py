"""Memory of one solver step at the published sizes, by the compiler's own analysis.

    python benchmarks/solver_memory.py [--sides 32,64,128,256,512,1024] [--memory_gib 4]

Nothing is allocated but the programs, which take up to 20 seconds of one core to compile.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.models.test_jacobian import GIB, step_memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", default="32,64,128,256,512,1024")
    parser.add_argument("--memory_gib", type=float, default=4.0)
    args = parser.parse_args()
    print(" side  dtype     Jacobian  step beyond it   compiled in")
    for side in map(int, args.sides.split(",")):
        for dtype in ("float32", "bfloat16"):
            before = time.perf_counter()
            temporary, jacobian = step_memory(side, dtype, int(args.memory_gib * GIB))
            print(
                f"{side:5d}  {dtype:9s} {jacobian / GIB:7.2f}  {(temporary - jacobian) / GIB:7.2f} "
                f"GiB      {time.perf_counter() - before:5.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()

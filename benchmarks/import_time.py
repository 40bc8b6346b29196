"""What ``import boss_core`` costs beside bare Python.

    python -m benchmarks.import_time

Both are whole processes, the best of several: ``python -c pass``, and the same with the import. The
names of the library are loaded when they are asked for, so the difference may be 30 ms at most. The
first use of a name, which loads torch, is printed for comparison.
"""

import argparse
import subprocess
import sys
import time

LIMIT_MS = 30
BARE, PACKAGE, NAME = "pass", "import boss_core", "from boss_core import euler"


def main() -> None:
    """Measure and print; exit code 1 above the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10)
    repeats = parser.parse_args().repeats
    best = dict.fromkeys((BARE, PACKAGE), float("inf"))
    for _ in range(repeats):  # in turn, so that a busy moment meets both
        for statement in best:
            best[statement] = min(best[statement], seconds(statement))
    # After them: a process that reads so much would slow down the one that follows.
    best[NAME] = min(seconds(NAME) for _ in range(3))
    for statement, found in best.items():
        more = found - best[BARE]
        print(
            f"{statement:30}{found * 1e3:8.1f} ms{more * 1e3:8.1f} ms more"
            f"{found / best[BARE]:8.2f} times"
        )
    if (best[PACKAGE] - best[BARE]) * 1e3 > LIMIT_MS:
        sys.exit(f"import boss_core takes more than {LIMIT_MS} ms beyond bare Python")


def seconds(statement: str) -> float:
    """The wall time of a Python process that runs a statement."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()

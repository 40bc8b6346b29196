"""How long ``boss schedule`` takes beside the rollout that it cannot do without.

    python -m benchmarks.schedule --checkpoint FILE --config NAME

Whole processes, in turns, the shortest of each: ``boss schedule`` for two budgets, and a program
that loads the same network and rolls out the same trajectories with Euler's method and nothing
else. The rollout alone, without Python's start and the loading, is the floor.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

BARE = """
import sys, time
from pathlib import Path
from boss_core.ode.solvers import euler
from boss_core.checkpoints.load import load_teacher
from boss_core.ode.timesteps import uniform
from boss_core.ode.noise import sample_noise
checkpoint, config, samples, batch, grid = sys.argv[1:]
teacher = load_teacher(Path(checkpoint), config or None)
start = time.perf_counter()
for first in range(0, int(samples), int(batch)):
    rows = range(first, min(first + int(batch), int(samples)))
    euler(teacher.velocity, sample_noise(rows, teacher.shape, 0), uniform(int(grid)))
print(time.perf_counter() - start)
"""


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--config", default="")
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--grid", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=2)
    chosen = parser.parse_args()
    sizes = [str(chosen.samples), str(chosen.batch_size), str(chosen.grid)]
    bare = [sys.executable, "-c", BARE, chosen.checkpoint, chosen.config, *sizes]
    search = [sys.executable, "-m", "flows.cli.app", "schedule", "--checkpoint", chosen.checkpoint]
    search += ["--config", chosen.config] if chosen.config else []
    search += ["--samples", sizes[0], "--batch-size", sizes[1], "--grid", sizes[2]]
    search += ["--budget", "4", "--budget", "8", "--device", "cpu"]
    seconds: dict[str, list[float]] = {"rollout alone": [], "bare": [], "boss schedule": []}
    for _ in range(chosen.repeats):
        start = time.perf_counter()
        done = subprocess.run(bare, check=True, capture_output=True, text=True)
        seconds["bare"].append(time.perf_counter() - start)
        seconds["rollout alone"].append(float(done.stdout))
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            out = ["--out", str(Path(folder) / "schedules")]
            subprocess.run([*search, *out], check=True, capture_output=True)
            seconds["boss schedule"].append(time.perf_counter() - start)
    shown = Table("", "seconds", "of the bare process")
    for name, found in seconds.items():
        shown.add_row(name, f"{min(found):.1f}", f"{min(found) / min(seconds['bare']):.3f}")
    Console(width=80).print(shown)


if __name__ == "__main__":
    main()

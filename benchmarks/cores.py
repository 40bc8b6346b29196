"""What a thread for each small network, and stages side by side, cost or save on this machine.

    python -m benchmarks.cores [--set NAME=VALUE ...]

In one run, on fresh clones of the last commit with a small preset (or with changes to it):

- before: ``dvc repro``, the stages one after the other, all threads for each;
- now: ``boss repro``, small networks with one thread, stages that can be side by side;

each alone and beside two processes that keep a core busy each. Seconds, and their ratios.
"""

import argparse
import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.orchestration import clone, timed
from flows.workspace.process import dvc_command

BUSY = 2
# A third of the default's work or less, in the same proportions.
PRESET = [
    "teacher.training.iterations=400",
    "features.training.iterations=150",
    "cost.samples=100",
    "schedule.samples=64",
    "trajectories.samples=400",
    "finetune.training.iterations=80",
    "evaluate.samples=600",
]
# As from a terminal, whatever the caller and we have set.
PLAIN = ["env", "-u", "OMP_NUM_THREADS", "-u", "OMP_WAIT_POLICY"]
RULE = "SMALL = 1e8\n"


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    overrides = [*PRESET, *parser.parse_args().set]
    boss = [sys.executable, "-m", "flows.cli.app", "repro"]
    seconds = {}
    with tempfile.TemporaryDirectory() as name:
        for load in ("alone", "busy"):
            with busy(BUSY if load == "busy" else 0):
                for way, command in (("before", dvc_command("repro")), ("now", boss)):
                    project = clone(Path(name) / f"{way}-{load}", overrides)
                    if way == "before":
                        all_threads(project / "flows" / "stages" / "runner.py")
                    seconds[way, load] = timed([*PLAIN, *command], project)
    table = Table("", "alone, s", f"beside {BUSY} busy processes, s", "ratio")
    for way in ("before", "now"):
        alone, beside = seconds[way, "alone"], seconds[way, "busy"]
        table.add_row(way, f"{alone:.0f}", f"{beside:.0f}", f"{beside / alone:.2f}")
    gains = [seconds["now", load] / seconds["before", load] for load in ("alone", "busy")]
    table.add_row("now / before", *(f"{gain:.2f}" for gain in gains), "")
    Console(width=100).print(table)


def all_threads(runner: Path) -> None:
    """Let no network of a clone be small."""
    text = runner.read_text()
    assert text.count(RULE) == 1
    runner.write_text(text.replace(RULE, "SMALL = 0.0\n"))


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes at work meanwhile that never wait for anything."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()

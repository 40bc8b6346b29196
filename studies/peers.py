"""What a user would otherwise pick against what this project finds, on one teacher, untrained.

    python -m studies.peers --teacher FOLDER --data FOLDER --judges FOLDER|imagenet ... --name NAME

Every method samples from the same noises of a seed, in K evaluations of the network; what is
searched or fitted is so on other noise. Rows go to ``--out``/rows.csv as they come, each of a seed,
a method and a budget, and a run that stopped goes on where it was. At the end
``docs/results/NAME.md`` and ``.csv`` and ``docs/images/NAME-samples.png`` are written; ``--page``
does nothing else. Text on the page outside the marks is kept.

On the digits, in the folder of a project that has run:

    python -m studies.peers --name peers-digits --teacher models/teacher --data data \
        --judges models/judges/second_classifier models/features

On CIFAR-10, on a card, some 40 million evaluations, and 5.8 million images for each judge:

    python -m studies.peers --name peers --teacher ../shared/data/cifar10-teacher \
        --data ../shared/data/cifar10 --judges imagenet ../shared/data/cifar10-classifier \
        --samples 10000 --seeds 3 --budgets 4 6 8 3 5 7 9 10 --batch-size 1000 --device cuda

Budgets are run in the order given, all of a seed before the next one; where time is short the
page has for each budget the seeds that are there. For a try without a card: ``--samples 8 --seeds 1
--budgets 3 --grid 6 --costs 10 --real 16``.
"""

import argparse
import csv
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from boss_core.errors import InputError
from boss_core.io.files import write_bytes
from flows.progress import progress
from studies.peers_methods import METHODS, TEACHER
from studies.samplers import hold_to

Row = dict[str, str]
BESIDE = 3  # sets of samples whose distances are computed beside the next one's sampling


class Cell(NamedTuple):
    """One set of samples. ``budget``: evaluations for each of them."""

    seed: int
    method: str
    budget: int


def main(arguments: list[str] | None = None) -> None:
    """Measure what is missing and write the page."""
    chosen = parsed(arguments)
    chosen.out = chosen.out or Path("build") / chosen.name
    try:
        if not chosen.page:
            measure(chosen)
        page(chosen)
    except InputError as error:
        sys.exit(f"error: {error}")


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--teacher", type=Path, default=Path("models/teacher"), help="a network's folder")
    add("--data", type=Path, default=Path("data"),
        help="a folder with train.npy, uint8 NCHW, or with strips of CIFAR-10")  # fmt: skip
    add("--judges", nargs="+", default=["models/judges/second_classifier", "models/features"],
        help="folders of extractors, or imagenet; the first of them decides")  # fmt: skip
    add("--methods", nargs="+", default=list(METHODS), choices=METHODS, metavar="METHOD",
        help=", ".join(METHODS))  # fmt: skip
    add("--budgets", type=int, nargs="+", default=[3, 4, 6, 8], metavar="K")
    add("--samples", type=int, default=2000)
    add("--seeds", type=int, default=3)
    add("--real", type=int, help="real images, at most; all of them where it is left out")
    add("--grid", type=int, default=100, help="steps of the fine path, the teacher's own")
    add("--costs", type=int, default=300, metavar="N", help="noises to search on")
    add("--batch-size", type=int, default=500)
    add("--device", default="cpu")
    add("--out", type=Path, help="folder of rows and samples; build/NAME where it is left out")
    add("--docs", type=Path, default=Path("docs"))
    add("--name", default="peers", help="of the page, its table and its picture")
    add("--page", action="store_true", help="only write the page from the rows")
    return parser.parse_args(arguments)


def plan(chosen: argparse.Namespace) -> Iterator[Cell]:
    """All sets of samples in their order."""
    for seed in range(chosen.seeds):
        yield Cell(seed, TEACHER, chosen.grid)
        for budget in chosen.budgets:
            for method in chosen.methods:
                yield Cell(seed, method, budget)


def measure(chosen: argparse.Namespace) -> None:
    """Append the rows that are missing."""
    from studies.peers_bench import Seed, load_bench

    check(chosen)
    bench = load_bench(chosen)
    hold_to(chosen.out / "settings.json", bench.setting)
    rows = Rows(chosen.out / "rows.csv", bench.columns)
    missing = [cell for cell in plan(chosen) if cell not in rows.found]
    evaluations = chosen.samples * sum(cell.budget for cell in missing)
    print(
        f"peers: {len(missing)} sets of samples to do, {len(rows.found)} there; about"
        f" {evaluations / 1e6:.1f} million evaluations of the network",
        flush=True,
    )
    at: Seed | None = None
    with (
        ThreadPoolExecutor(BESIDE) as pool,
        progress("peers", len(missing), "sets") as advance,
    ):
        pending: deque[tuple[Cell, Future[Row]]] = deque()
        for cell in missing:
            if at is None or at.seed != cell.seed:
                at = Seed(bench, cell.seed)
            pending.append((cell, at.measure(cell.method, cell.budget, pool)))
            while pending and (len(pending) > BESIDE or pending[0][1].done()):
                first, row = pending.popleft()
                rows.append(first, row.result())
                advance(1)
        for last, row in pending:
            rows.append(last, row.result())
            advance(1)


def check(chosen: argparse.Namespace) -> None:
    """InputError for numbers that cannot be measured with, before any work."""
    for name, value, least in (
        ("samples", chosen.samples, 4), ("seeds", chosen.seeds, 1), ("costs", chosen.costs, 10),
        ("batch-size", chosen.batch_size, 1),
    ):  # fmt: skip
        if value < least:
            raise InputError(f"--{name}: {value}; at least {least} needed")
    for budget in chosen.budgets:
        if not 2 <= budget <= chosen.grid:
            raise InputError(f"--budgets: {budget}; 2 to {chosen.grid}, the grid's steps, needed")


class Rows:
    """Rows of a table on disk, appended as they come."""

    def __init__(self, path: Path, columns: list[str] | None = None) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if columns is not None and not path.exists():
            write_bytes(path, (",".join(columns) + "\n").encode())
        text = path.read_text() if path.exists() else ""
        whole, newline, torn = text.rpartition("\n")
        if torn:  # stopped in the middle of a line
            write_bytes(path, (whole + newline).encode())
        reader = csv.DictReader(whole.splitlines())
        self.found = {
            Cell(int(row["seed"]), row["method"], int(row["budget"])): row for row in reader
        }
        self.columns = list(reader.fieldnames or columns or [])
        if columns is not None and self.columns != columns:
            other = ", ".join(sorted(set(columns) ^ set(self.columns))) or "their order"
            raise InputError(f"{path}: columns of another run ({other}); another --out needed")

    def append(self, cell: Cell, values: Row) -> None:
        """Add one row, on the disk before the next is measured."""
        row = {name: str(value) for name, value in cell._asdict().items()} | values
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns, lineterminator="\n").writerow(row)
        self.found[cell] = row


def page(chosen: argparse.Namespace) -> None:
    """Write the page from the rows in ``--out``."""
    import json

    from studies.peers_page import write_page

    rows = Rows(chosen.out / "rows.csv")
    if not rows.found:
        raise InputError(f"{rows.path}: no rows; a run without --page needed")
    setting = json.loads((chosen.out / "settings.json").read_text())
    print(f"peers: {write_page(rows, setting, chosen.out, chosen.docs, chosen.name)}")


if __name__ == "__main__":
    main()

"""Which sampler is best for a budget: solvers and schedule objectives on one network.

    python -m studies.samplers [--checkpoint FOLDER] [--reference FILE] [--features FOLDER]

Searches every schedule on noise of its own, samples from other noise, and measures the distance to
real images, for several seeds. Rows go to ``--out`` as they come: a run that stopped goes on
where it was, and a wider one (more seeds, budgets, students) measures only what is new. At the
end ``docs/results/samplers.md`` with its plots and ``samplers.csv`` are written; ``--page`` does
nothing else, and ``--rows`` leaves it out. Text on the page outside the marks is kept.

About 45 million evaluations of the network for what is measured by default, without students. On
a small network and a CPU a process for each core, with a thread each (``OMP_NUM_THREADS=1``), is
faster than one with all: ``--rows --seeds 3`` beside ``--rows --first-seed 3 --seeds 2``, then
``--page``.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from boss_core.errors import InputError
from boss_core.io.files import write_bytes
from boss_core.ode.solver_table import SOLVERS as TABLE
from flows.progress import progress

Row = dict[str, Any]

CANDIDATES = ("uniform", "l2_squared", "l2", "minimax", "gits", "oss")
# Searches by a distance between samples, and which it is; then ``auto``, which takes the nearest of
# the candidates and of one refinement by the same distance, on held-out noise.
REFINED = {"refine": "sliced_wasserstein", "refine_features": "features"}
AUTO = {"auto": "refine", "auto_features": "refine_features"}
EVERY = (*CANDIDATES, *REFINED, *AUTO)
# Which objectives each solver has a search for.
OBJECTIVES = {
    "euler": EVERY,
    "ab2": EVERY,
    "heun": ("uniform", "l2_squared"),
}
FLOORS = ("euler", "ab2", "rk45")
# What is straightened, solver and objective.
STUDENTS = (
    ("euler", "uniform"), ("euler", "l2_squared"),
    ("ab2", "uniform"), ("ab2", "refine"), ("ab2", "refine_features"),
)  # fmt: skip


class Cell(NamedTuple):
    """One measurement. ``budget`` is in network evaluations; a floor's is its grid, or 0 for
    RK45, whose number is only known afterwards."""

    seed: int
    network: str
    solver: str
    objective: str
    budget: int


def main(arguments: list[str] | None = None) -> None:
    """Measure what is missing and write the page."""
    chosen = parsed(arguments)
    try:
        if not chosen.page:
            measure(chosen)
        if not chosen.rows:
            page(chosen)
    except InputError as error:
        sys.exit(f"error: {error}")


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, default=Path("models/teacher"), help="a network's folder")
    add("--reference", type=Path, default=Path("data/train.npy"), help="real images, uint8 NCHW")
    add("--features", type=Path, default=Path("models/features"),
        help="extractor of Frechet distance and KID; without it, other distances only, and no"
        " searches by features")  # fmt: skip
    add("--budgets", type=int, nargs="+", default=list(range(2, 11)), metavar="K")
    add("--solvers", nargs="+", default=list(OBJECTIVES), choices=OBJECTIVES)
    add("--objectives", nargs="+", default=list(EVERY), choices=EVERY)
    add("--floors", nargs="*", default=list(FLOORS), choices=FLOORS)
    add("--seeds", type=int, default=5)
    add("--first-seed", type=int, default=0, help="so that two runs may share the work")
    add("--straightened", type=int, nargs="*", default=[], metavar="K", help="budgets of students")
    add("--student-seeds", type=int, default=5)
    add("--params", type=Path, default=Path("params.yaml"), help="how students are trained")
    add("--samples", type=int, default=2000, help="images behind every metric")
    add("--search-samples", type=int, default=256, help="noises that schedules are searched on")
    add("--grid", type=int, default=100, help="steps of the reference path")
    add("--batch-size", type=int, default=500)
    add("--device", default="cpu", choices=("cpu", "cuda"))
    add("--out", type=Path, default=Path("build/samplers"))
    add("--docs", type=Path, default=Path("docs"))
    add("--name", default="samplers", help="of the page, its table and its plots")
    add("--page", action="store_true", help="only write the page from the rows")
    add("--rows", action="store_true", help="only measure: needs no torch-fidelity, no matplotlib")
    return parser.parse_args(arguments)


def measure(chosen: argparse.Namespace) -> None:
    """Append the rows that are missing."""
    from studies.samplers_bench import load_bench
    from studies.samplers_measure import Seed, evaluations

    params = None
    if chosen.straightened:
        from flows.config import load_params

        params = load_params(chosen.params)
        hold_to(
            chosen.out / "students.json",
            {
                "compute": {"precision": params.compute.precision},
                "finetune": {"training": params.finetune.training.model_dump(mode="json")},
                "trajectories": params.trajectories.model_dump(mode="json"),
            },
        )
    bench = load_bench(
        checkpoint=chosen.checkpoint,
        reference=chosen.reference,
        features=chosen.features if chosen.features.is_dir() else None,
        params=params,
        cache=chosen.out / "features",
        grid=chosen.grid,
        samples=chosen.samples,
        search_samples=chosen.search_samples,
        batch_size=chosen.batch_size,
        device=chosen.device,
    )
    hold_to(chosen.out / "settings.json", bench.setting)
    rows = Rows(chosen.out / "rows.jsonl")
    planned = list(plan(chosen))
    missing = [cell for cell in planned if cell not in rows.found]
    print(
        f"samplers: {len(missing)} measurements to do, {len(planned) - len(missing)} there; about"
        f" {evaluations(bench, missing) / 1e6:.1f} million evaluations of the network",
        flush=True,
    )
    start = time.monotonic()
    with progress("samplers", len(missing), "measurements") as advance:
        for seed, cells in groupby(missing, key=lambda cell: cell.seed):
            known = [row for cell, row in rows.found.items() if cell.seed == seed]
            at = Seed(bench, seed, known, [cell for cell in planned if cell.seed == seed])
            for cell in cells:
                rows.append(cell, at.measure(cell))
                advance(1)
    print(
        f"samplers: {bench.velocity.samples / 1e6:.1f} million evaluations without training,"
        f" {time.monotonic() - start:.0f} s"
    )


def plan(chosen: argparse.Namespace) -> Iterator[Cell]:
    """All measurements in order. A seed's students come last: they use its schedules."""
    featured = chosen.features.is_dir()
    objectives = [
        name for name in chosen.objectives
        if featured or REFINED.get(AUTO.get(name, name)) != "features"
    ]  # fmt: skip
    for seed in range(chosen.first_seed, chosen.first_seed + chosen.seeds):
        for solver in chosen.floors:
            yield Cell(seed, "teacher", solver, "floor", 0 if solver == "rk45" else chosen.grid)
        for solver in chosen.solvers:
            for budget in chosen.budgets:
                if budget % TABLE[solver].evaluations:
                    continue
                for objective in objectives:
                    if objective in OBJECTIVES[solver]:
                        yield Cell(seed, "teacher", solver, objective, budget)
        if seed < chosen.student_seeds:
            for solver, objective in STUDENTS:
                if solver in chosen.solvers and objective in objectives:
                    for budget in chosen.straightened:
                        yield Cell(seed, "student", solver, objective, budget)


class Rows:
    """Rows on disk, a JSON object a line, appended as they come."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text() if path.exists() else ""
        whole, newline, torn = text.rpartition("\n")
        if torn:  # stopped in the middle of a line
            write_bytes(path, (whole + newline).encode())
        rows = [json.loads(line) for line in whole.splitlines()]
        self.found = {Cell(*(row[name] for name in Cell._fields)): row for row in rows}

    def append(self, cell: Cell, values: Row) -> None:
        """Add one row, on the disk before the next is measured."""
        row = cell._asdict() | values
        with self.path.open("a") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
        self.found[cell] = row


def hold_to(path: Path, setting: Row) -> None:
    """InputError when the rows beside ``path`` were measured with another setting."""
    if not path.exists():
        write_bytes(path, (json.dumps(setting, indent=1) + "\n").encode())
        return
    before = json.loads(path.read_text())
    for name in before.keys() | setting.keys():
        if before.get(name) != setting.get(name):
            raise InputError(
                f"{path}: {name}: {before.get(name)}, but {setting.get(name)} asked for; another"
                " --out needed for other settings"
            )


def page(chosen: argparse.Namespace) -> None:
    """Write the page from the rows in ``--out``."""
    import pandas as pd

    from studies.samplers_page import write_page

    rows = Rows(chosen.out / "rows.jsonl").found.values()
    if not rows:
        raise InputError(f"{chosen.out / 'rows.jsonl'}: no rows; a run without --page needed")
    setting = json.loads((chosen.out / "settings.json").read_text())
    path = write_page(pd.DataFrame(rows), setting, chosen.docs, chosen.name)
    print(f"samplers: {path}")


if __name__ == "__main__":
    main()

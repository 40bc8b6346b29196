"""What a search should go by: how criteria rank schedules, against judges of the images.

    python -m studies.criteria --teacher ../shared/data/cifar10-teacher \
        --data ../shared/data/cifar10 --judges imagenet ../shared/data/cifar10-classifier \
        --samples 2000 --seeds 5 --budgets 4 6 --batch-size 1000 --device cuda

For each solver and budget a pool of schedules: equal steps, powers of them, Bellman's by several
costs, steps that a search moved by endpoint error, by that of high frequencies and by the second
judge's features, and random ones. Each is sampled from the noise of every seed. A criterion
compares the samples with the teacher's from the same noise; a judge, their features with the real
images'. The page has Spearman's rank correlation of a criterion on one seed with the mean of a
judge over the other seeds, so that no chance of one noise is in both, and what the criterion's
first choice loses.
"""

import argparse
import csv
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor

from boss_core.errors import InputError
from boss_core.io.files import write_bytes
from boss_core.ode.noise import SEARCH
from boss_core.ode.solvers import ab2, euler
from boss_core.ode.timesteps import nearest_indices, uniform
from boss_core.ode.velocity import VelocityField
from boss_core.search.distances import (
    Distance,
    detail_error,
    endpoint_error,
    feature_frechet,
    sliced_wasserstein,
)
from boss_core.search.multistep import with_weights
from boss_core.search.refine import refine
from boss_core.search.settings import SearchSettings
from boss_core.search.steps import FoundSteps
from studies.markdown import markdown, write_between
from studies.peers_bench import Bench, Seed, load_bench, sampled
from studies.peers_methods import Indices, weighted

SOLVERS = ("euler", "ab2", "multistep")
POWERS = (0.6, 0.8, 1.25, 1.6)
RANDOM = 8  # schedules of each budget, around the others
OFFSETS = ((8,), (3,), (1,))  # of the searches for the pool, coarse for the sake of time
SEARCHED = 300  # noises of these searches

Pool = dict[str, Indices]
Criteria = dict[str, Callable[[Tensor], Tensor]]


def main(arguments: list[str] | None = None) -> None:
    """Measure, and write ``docs/results/NAME.md`` and ``.csv``."""
    chosen = parsed(arguments)
    try:
        if not chosen.page:
            measure(chosen)
        write_page(chosen)
    except InputError as error:
        sys.exit(f"error: {error}")


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--teacher", type=Path, default=Path("models/teacher"), help="a network's folder")
    add("--data", type=Path, default=Path("data"))
    add("--judges", nargs="+", default=["models/judges/second_classifier", "models/features"],
        help="two folders of extractors, or imagenet")  # fmt: skip
    add("--budgets", type=int, nargs="+", default=[4, 6], metavar="K")
    add("--samples", type=int, default=2000)
    add("--seeds", type=int, default=5)
    add("--real", type=int, help="real images, at most")
    add("--grid", type=int, default=100)
    add("--costs", type=int, default=300, metavar="N")
    add("--batch-size", type=int, default=500)
    add("--device", default="cpu")
    add("--out", type=Path, default=Path("build/criteria"))
    add("--docs", type=Path, default=Path("docs"))
    add("--name", default="criteria")
    add("--page", action="store_true", help="only write the page from the rows")
    return parser.parse_args(arguments)


def measure(chosen: argparse.Namespace) -> None:
    """All rows anew: each of a seed, a solver, a budget and a schedule."""
    bench = load_bench(chosen)
    if len(bench.judges) != 2:
        raise InputError(f"--judges: {len(bench.judges)}; two needed")
    seeds = [Seed(bench, seed) for seed in range(chosen.seeds)]
    # The sums over the real images once, not for every schedule.
    to_real = {j.name: feature_frechet(j.real, lambda features: features) for j in bench.judges}
    chosen.out.mkdir(parents=True, exist_ok=True)
    write_bytes(chosen.out / "settings.json", json.dumps(bench.setting).encode())
    path, writer = chosen.out / "rows.csv", None
    with path.open("w", newline="") as file:
        for budget in chosen.budgets:
            pools = {solver: pool(bench, seeds[0], solver, budget) for solver in SOLVERS}
            for seed in seeds:
                for row in of_seed(bench, seed, pools, budget, to_real):
                    if writer is None:
                        writer = csv.DictWriter(file, list(row), lineterminator="\n")
                        writer.writeheader()
                    writer.writerow(row)
                    file.flush()
            print(f"criteria: K = {budget} done", flush=True)


def pool(bench: Bench, seed: Seed, solver: str, budget: int) -> Pool:
    """The schedules of a solver, by name; those of one seed for all."""
    searches, n = seed.searches, len(seed.searches.grid) - 1
    found: Pool = {"uniform": searches.uniform(budget)}
    for power in POWERS:
        times = uniform(budget) ** power
        found[f"power {power}"] = nearest_indices(searches.grid, times)
    for name in ("euler", "ab2", "multistep"):
        found[f"Bellman, {name}"] = searches.best(budget, name)
    found["GITS"] = searches.best(budget, "euler", "gits")
    # Fitted weights are not searched for by samples: they get ab2's steps.
    of = "euler" if solver == "euler" else "ab2"
    noise, labels = seed.source.draw(range(min(SEARCHED, bench.chosen.samples)), SEARCH)
    reference = teacher_ends(bench, noise, labels)
    by = bench.judges[1]
    distances: dict[str, Distance] = {
        "searched by endpoint": endpoint_error(reference),
        "searched by detail": detail_error(reference),
        f"searched by {by.name}": feature_frechet(reference, by.features),
    }
    for name, distance in distances.items():
        found[name] = refine(
            bench.teacher.velocity, noise, searches.grid, [searches.best(budget, of)], distance,
            solver=of, batch_size=bench.chosen.batch_size, labels=labels, offsets=OFFSETS, sweeps=1,
        ).indices  # fmt: skip
    rng = np.random.default_rng(budget)
    bases = list(found.values())
    for i in range(RANDOM):
        inner = np.array(bases[rng.integers(len(bases))][1:-1]) + rng.integers(-7, 8, budget - 1)
        inner = np.sort(np.clip(inner, 1, n - 1))
        if len(set(inner.tolist())) == budget - 1:
            found[f"random {i}"] = (0, *map(int, inner), n)
    return found


def of_seed(
    bench: Bench, seed: Seed, pools: dict[str, Pool], budget: int, to_real: dict[str, Distance]
) -> Iterator[dict[str, str]]:
    """A row for each solver and schedule. to_real: of features, by the name of the judge."""
    noise, labels = seed.noise
    reference = teacher_ends(bench, noise, labels)
    of_images = image_criteria(reference)
    of_features = {
        judge.name: feature_criteria(judge.name, judge.features(reference))
        for judge in bench.judges
    }
    for solver, schedules in pools.items():
        for name, sampler in samplers(bench, seed, solver, schedules):
            ends, _ = sampled(bench, sampler, noise, labels)
            features = {judge.name: judge.features(ends) for judge in bench.judges}
            row = {
                "seed": str(seed.seed), "solver": solver, "budget": str(budget), "steps": name,
                "indices": " ".join(map(str, schedules[name])),
            }  # fmt: skip
            for judge in bench.judges:
                value = float(to_real[judge.name](features[judge.name][None]))
                row[f"frechet_{judge.name}"] = f"{value:.7g}"
            found = [(key, by(ends)) for key, by in of_images.items()]
            for judge, criteria in of_features.items():
                found += [(key, by(features[judge])) for key, by in criteria.items()]
            row |= {key: f"{float(value):.7g}" for key, value in found}
            last = float(seed.searches.grid[-1] - seed.searches.grid[schedules[name][-2]])
            yield row | {"last step": f"{last:.4g}"}


def samplers(
    bench: Bench, seed: Seed, solver: str, schedules: Pool
) -> Iterator[tuple[str, Callable[[VelocityField, Tensor], Tensor]]]:
    """Each schedule's sampler; with fitted weights of the seed's own where the solver has them."""
    searches = seed.searches
    for name, indices in schedules.items():
        times = searches.times(indices)
        if solver != "multistep":
            yield name, partial({"euler": euler, "ab2": ab2}[solver], timesteps=times)
            continue
        matrix, fine = searches.measured
        settings = SearchSettings(solver="multistep", order=3, batch_size=bench.chosen.batch_size)
        (found,) = with_weights(
            bench.teacher.velocity, matrix, {len(indices) - 1: FoundSteps(name, indices)},
            settings, searches.source, fine,
        ).values()  # fmt: skip
        yield name, partial(weighted, times, found.fitted.weights if found.fitted else ())


def image_criteria(reference: Tensor) -> Criteria:
    """Of final states, (N, C, H, W), against the teacher's from the same noise; less is better."""
    spectrum = power_spectrum(reference)
    squares, detail = endpoint_error(reference), detail_error(reference)
    sliced = sliced_wasserstein(reference)
    return {
        "endpoint": lambda x: squares(x[None]),
        "endpoint, high frequencies": lambda x: detail(x[None]),
        "noise left": lambda x: (rough(x) / rough(reference)).log().abs(),
        "spectrum": lambda x: (power_spectrum(x) / spectrum).log().square().mean().sqrt(),
        "endpoint and spectrum": lambda x: (
            squares(x[None]) / squares(torch.zeros_like(x)[None])
            + (power_spectrum(x) / spectrum).log().square().mean()
        ),
        "sliced Wasserstein": lambda x: sliced(x[None]),
    }


def feature_criteria(judge: str, reference: Tensor) -> Criteria:
    """Of a judge's features of samples, (N, F), against those of the teacher's."""
    frechet = feature_frechet(reference, lambda features: features)
    return {
        f"frechet_{judge} to the teacher": lambda x: frechet(x[None]),
        f"paired features, {judge}": lambda x: (x - reference).square().sum(dim=1).mean(),
    }


def rough(x: Tensor) -> Tensor:
    """The mean square of what a pixel differs from the mean of its four neighbours."""
    return detail_error(torch.zeros_like(x))(x[None])[0]


def power_spectrum(x: Tensor) -> Tensor:
    """The mean over samples and channels of the squared magnitude at every frequency."""
    return torch.fft.rfft2(x).abs().double().square().mean(dim=(0, 1))


def teacher_ends(bench: Bench, noise: Tensor, labels: Tensor | None) -> Tensor:
    """Where the teacher's own steps end."""
    return sampled(bench, partial(euler, timesteps=uniform(bench.chosen.grid)), noise, labels)[0]


NAMES = ("seed", "solver", "budget", "steps", "indices")


def write_page(chosen: argparse.Namespace) -> None:
    """Rank correlations from the rows."""
    path = chosen.out / "rows.csv"
    if not path.is_file():
        raise InputError(f"{path}: no rows; a run without --page needed")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    setting = json.loads((chosen.out / "settings.json").read_text())
    columns = [name for name in rows[0] if name not in NAMES]
    judges = [f"frechet_{name}" for name in setting["judges"]]
    groups = sorted({(row["solver"], int(row["budget"])) for row in rows}, key=lambda g: g[::-1])
    parts = ["## What was measured", introduction(rows, setting)]
    for judge in judges:
        ranks, losses = [], []
        for criterion in columns:
            of_groups = [of_group(rows, *group, criterion, judge) for group in groups]
            ranks.append(
                [f"{criterion}", *(f"{mean:.2f} ({low:.2f})" for mean, low, _ in of_groups)]
            )
            losses.append([f"{criterion}", *(f"{100 * loss:+.0f} %" for *_, loss in of_groups)])
        titles = [f"{solver}, K = {budget}" for solver, budget in groups]
        parts += [
            f"### Against `{judge}`",
            "Rank correlation, the mean over seeds and in brackets the least of them:",
            markdown(["criterion", *titles], ranks),
            "What the criterion's first choice loses to the pool's best, by the judge:",
            markdown(["criterion", *titles], losses),
        ]
    page = chosen.docs / f"results/{chosen.name}.md"
    write_between(page, "studies/criteria.py", "What a search should go by", parts)
    write_bytes(chosen.docs / f"results/{chosen.name}.csv", path.read_bytes())
    print(f"criteria: {page}")


def of_group(
    rows: list[dict[str, str]], solver: str, budget: int, criterion: str, judge: str
) -> tuple[float, float, float]:
    """The mean and the least rank correlation over seeds, and the mean share that is lost."""
    by, truth = (
        table(rows, solver, budget, column) for column in (criterion, judge)
    )  # (seeds, schedules)
    found, lost = [], []
    for s in range(len(by)):
        others = np.delete(truth, s, axis=0).mean(axis=0) if len(by) > 1 else truth[s]
        found.append(float(spearmanr(by[s], others).statistic))
        lost.append(others[by[s].argmin()] / others.min() - 1)
    return float(np.mean(found)), min(found), float(np.mean(lost))


def table(rows: list[dict[str, str]], solver: str, budget: int, column: str) -> NDArray[np.float64]:
    """(seeds, schedules) of one column, in the order of the rows."""
    of = [row for row in rows if (row["solver"], row["budget"]) == (solver, str(budget))]
    seeds = sorted({int(row["seed"]) for row in of})
    return np.array([[float(r[column]) for r in of if r["seed"] == str(s)] for s in seeds])


def introduction(rows: list[dict[str, str]], setting: dict[str, object]) -> str:
    """What was done, with its counts."""
    seeds = len({row["seed"] for row in rows})
    pools = {(row["solver"], row["budget"], row["steps"]) for row in rows}
    groups = len({(row["solver"], row["budget"]) for row in rows})
    return (
        f"One teacher, `{str(setting['teacher'])[:12]}`; {len(pools)} schedules in {groups} pools,"
        f" each sampled from {setting['samples']:,} noises of {seeds} seeds; judges against"
        f" {setting['real']:,} real images. Criteria are against the teacher's {setting['grid']}"
        " Euler steps from the same noise. A criterion of one seed is held against the mean of the"
        " judge over the other seeds. `last step` is the last step's length alone."
    )


if __name__ == "__main__":
    main()

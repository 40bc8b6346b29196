"""The table of the paper on one data set: every method at every budget, from finished projects.

    python -m studies.methods PROJECT [PROJECT ...] --name cifar10

Each PROJECT is the folder of a pipeline that has run, one for each seed, with the same data,
teacher and extractor: for another seed copy a finished project, change `seed` in the params.yaml of
the copy, and run `dvc repro --downstream cost floor` there. Writes docs/results/NAME.md and .csv, a
plot and a picture of samples. Text on the page outside the marks is kept.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from PIL import Image

from boss_core.errors import InputError
from boss_core.io.files import write_bytes
from boss_core.training.settings import training_share
from flows import paths
from flows.config import Params, load_params
from flows.measure.usage import amounts, read_usage
from flows.records.json_files import Json, frechet_name, read_json
from flows.records.record import read_record
from flows.records.variants import Variant, recorded
from flows.report.image_grid import COLUMNS, ROWS
from flows.report.plots import COLOURS, figure, log_scale
from studies.markdown import markdown, mean_and_error, value, write_between
from studies.samplers_page import SOLVERS, percent, samplers

SHARED = ("teacher_hash", "extractor_hash", "reference_hash", "samples")  # of all projects
OWN = {"seed", "device", "tracking"}  # parameters that may differ
KINDS = ("kid", "precision", "recall")  # the metrics beside the Frechet distance
# What is measured of a budget's work, by the stage that does it.
WORK = {"finetune": "training", "evaluate": "sampling"}
# And of that of all budgets; true where one project's is every project's.
FOR_ALL = {
    "features": ("training", True),
    "teacher": ("training", True),
    "cost": ("search", False),
    "schedule": ("search", False),
    "trajectories": ("generation", False),
}
SHOWN_COLUMNS, SHOWN_ROWS = 5, 2  # of each grid of samples

Cells = Mapping[tuple[str, int], Sequence[float]]  # the values of a row at a budget, over seeds


@dataclass(frozen=True)
class Project:
    """A finished pipeline: its parameters, and the records of its floor and of every budget."""

    folder: Path
    params: Params
    floor: Json
    records: Mapping[int, Json]


def main(arguments: list[str] | None = None) -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("projects", type=Path, nargs="+", metavar="PROJECT")
    parser.add_argument("--name", required=True, help="of the page, its table and its pictures")
    parser.add_argument("--samplers", type=Path, help="a .csv of studies/samplers.py to show")
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    chosen = parser.parse_args(arguments)
    try:
        projects = [read_project(folder) for folder in chosen.projects]
        print(write_page(projects, chosen.docs, chosen.name, chosen.samplers))
    except InputError as error:
        sys.exit(f"error: {error}")


def read_project(folder: Path) -> Project:
    """InputError where a record is missing."""
    params = load_params(folder / "params.yaml")
    records = {k: read_record(k, folder) for k in sorted(params.budgets)}
    return Project(folder, params, read_record("teacher", folder), records)


def write_page(
    projects: Sequence[Project], docs: Path, name: str, samplers_csv: Path | None = None
) -> Path:
    """Write ``results/NAME.md`` and ``.csv``, and the pictures in ``images``, below ``docs``;
    returns the path of the page. InputError for projects that differ by more than their seed."""
    check_seeds(projects)
    first = projects[0]
    rows = measurements(projects)
    variants = recorded({k: v for record in first.records.values() for k, v in record.items()})
    score = frechet_name(first.floor)
    every_sampler = sampler_table(samplers_csv, score)
    write_bytes(docs / f"results/{name}.csv", rows.to_csv(index=False).encode())
    plot(docs / f"images/{name}-score.png", rows, variants, score, floor(projects, score))
    picture(docs / f"images/{name}-samples.png", first, variants)
    parts = [
        "## What was measured",
        introduction(projects, name),
        f"![{score} of every method](../images/{name}-score.png)",
        *(
            part
            for metric in metrics(rows)
            for part in (
                *table(rows, variants, metric, projects),
                *(against_boss(rows, variants, metric) if metric == score else ()),
            )
        ),
        *every_sampler,
        *work(rows, variants, projects),
        "### Samples",
        f"Image i starts from noise i everywhere; seed {first.params.seed}.",
        f"![Samples of every method at every budget](../images/{name}-samples.png)",
        "### How to run it",
        "`dvc repro` with these parameters, then"
        f" `python -m studies.methods PROJECT [PROJECT ...] --name {name}`:",
        f"```yaml\n{parameters(first.params)}```",
    ]
    path = docs / f"results/{name}.md"
    write_between(path, "studies/methods.py", f"Every method at every budget: {name}", parts)
    return path


def check_seeds(projects: Sequence[Project]) -> None:
    """InputError unless the projects differ by their seed, and by nothing else."""
    first, *others = projects
    seeds: dict[int, Path] = {}
    for project in projects:
        seed = project.params.seed
        if seed in seeds:
            raise InputError(
                f"{project.folder}: seed {seed}, as in {seeds[seed]}; one project a seed needed"
            )
        seeds[seed] = project.folder
    for other in others:
        pairs = {what: (other.floor[what], first.floor[what]) for what in SHARED}
        expected = flat(first.params)
        pairs |= {what: (found, expected[what]) for what, found in flat(other.params).items()}
        for what, (found, needed) in pairs.items():
            if found != needed:
                raise InputError(
                    f"{other.folder}: {what}: {found}, but {needed} in {first.folder}; projects"
                    " that differ by their seed only needed"
                )


def flat(params: Params) -> dict[str, Any]:
    """The parameters by their dotted names, without those that may differ."""
    of = pd.json_normalize(params.model_dump(mode="json", exclude=OWN))
    return {str(name): of.at[0, name] for name in of.columns}


def parameters(params: Params) -> str:
    """What params.yaml says, without an address that may hold a password."""
    content = params.model_dump(mode="json", exclude={"device", "tracking"})
    return yaml.safe_dump(content, sort_keys=False, default_flow_style=None)


def measurements(projects: Sequence[Project]) -> pd.DataFrame:
    """A row for each seed, budget and variant, with its metrics and, where they were measured,
    seconds, images a second, memory, energy and g CO2 of its training and sampling."""
    rows = []
    for project in projects:
        for budget, record in project.records.items():
            taken = {w: read_usage(f"{s}-{budget}", project.folder) for s, w in WORK.items()}
            for name in recorded(record):
                row: dict[str, Any] = {"seed": project.params.seed, "nfe": budget, "variant": name}
                row |= record[name]
                for what, of in taken.items():
                    if name in of:
                        found = amounts(of[name], project.params.tracking.grid_intensity)
                        row |= {f"{what}_{key}": number for key, number in found.items()}
                rows.append(row)
    return pd.DataFrame(rows)


def metrics(rows: pd.DataFrame) -> list[str]:
    """The metrics in the order of the page."""
    columns = [c for c in rows.columns if not c.endswith(("_std", "_se"))]
    found = [c for c in columns if c == "fid" or c.startswith("frechet_")]
    return found + [c for kind in KINDS for c in columns if c.startswith(kind)]


def floor(projects: Sequence[Project], metric: str) -> list[float]:
    """What the teacher reaches on the whole fine grid, for each seed."""
    return [project.floor["fine"][metric] for project in projects]


def introduction(projects: Sequence[Project], name: str) -> str:
    """Where the numbers come from."""
    first = projects[0]
    params, record = first.params, first.floor
    card = read_json(first.folder / paths.FEATURES / "card.json")
    training = params.finetune.training
    accuracy = (
        f", right on {card['test_accuracy']:.1%} of {card['test_samples']:,} test images"
        if "test_accuracy" in card
        else ""
    )
    seeds = ", ".join(str(project.params.seed) for project in projects)
    spread = (
        f" Values are means over the seeds {seeds} ± one standard error, without one where a single"
        " seed was run; a seed draws its own noise to search on, to train on and to evaluate from."
        if len(projects) > 1
        else f" One seed ({seeds}), so without a spread."
    )
    among = " among rows with all seeds" if len(projects) > 1 else ""
    kept = params.trajectories
    trajectories = training_share(kept.samples, kept.validation_fraction)
    return (
        f"Teacher `{record['teacher_hash'][:12]}`. Every method trains from it for"
        f" {training.iterations:,} iterations of {training.batch_size} on"
        f" {trajectories:,} of its trajectories. Each value compares"
        f" {record['samples']:,} samples with {record['reference_samples']:,} real images in the"
        f" features of the {record['extractor']} `{record['extractor_hash'][:12]}`{accuracy}."
        f"{spread} The lowest distance of each budget{among} is bold. All numbers:"
        f" [{name}.csv]({name}.csv)."
    )


def by_budget(
    titles: Mapping[str, str],
    cells: Cells,
    decimals: int | None = None,
    *,
    bold: bool = False,
) -> str:
    """A table with a row for each title and a column for each budget. bold: the lowest mean of
    each budget, among those over the most seeds."""
    budgets = sorted({k for _, k in cells})
    means = {cell: float(np.mean(values)) for cell, values in cells.items()}
    seeds = {k: max(len(values) for (_, of), values in cells.items() if of == k) for k in budgets}
    lowest = {
        k: min(means[row, of] for (row, of), v in cells.items() if of == k and len(v) == seeds[k])
        for k in budgets
    }

    def shown(row: str, k: int) -> str:
        text = value(cells[row, k], decimals) if (row, k) in cells else ""
        return f"**{text}**" if text and bold and means[row, k] == lowest[k] else text

    lines = [[title, *(shown(row, k) for k in budgets)] for row, title in titles.items()]
    return markdown(["", *(f"K = {k}" for k in budgets)], lines)


def of_variants(rows: pd.DataFrame, column: str) -> dict[tuple[str, int], list[float]]:
    """The values of a column over seeds, for each variant and budget that has any."""
    measured = rows.dropna(subset=[column])
    return {
        cell: list(part[column])  # type: ignore[misc]
        for cell, part in measured.groupby(["variant", "nfe"])
    }


def table(
    rows: pd.DataFrame, variants: Mapping[str, Variant], metric: str, projects: Sequence[Project]
) -> list[str]:
    """One metric: a row for each variant, and the floor."""
    distance = not metric.startswith(("precision", "recall"))
    decimals = None if metric == "fid" or metric.startswith("frechet") else 4
    titles = {name: variant.title for name, variant in variants.items()}
    cells = of_variants(rows, metric)
    teacher = value(floor(projects, metric), decimals)
    return [
        f"### `{metric}`",
        by_budget(titles, cells, decimals, bold=distance),
        f"The teacher with {projects[0].floor['nfe']} Euler steps: {teacher}.",
    ]


def against_boss(rows: pd.DataFrame, variants: Mapping[str, Variant], metric: str) -> list[str]:
    """The change of a metric against BOSS with the same seed, hence on the same noise: what
    seeds have in common is gone from its error."""
    boss = rows[rows["variant"] == "boss"].set_index(["seed", "nfe"])[metric].rename("boss")
    joined = rows.join(boss, on=["seed", "nfe"], how="inner")
    changed = joined.assign(change=100 * (joined[metric] / joined["boss"] - 1))
    cells = {
        cell: percent(*mean_and_error(values))
        for cell, values in of_variants(changed, "change").items()
    }
    budgets = sorted({k for _, k in cells})
    lines = [
        [variant.title, *(cells.get((name, k), "") for k in budgets)]
        for name, variant in variants.items()
        if name != "boss"
    ]
    return [
        f"Change of `{metric}` in percent against BOSS at the same budget and seed:",
        markdown(["", *(f"K = {k}" for k in budgets)], lines),
    ]


def sampler_table(path: Path | None, score: str) -> list[str]:
    """The pretrained network with every sampler and schedule objective, from the rows of
    `studies/samplers.py`; a line where there are none."""
    title = "### Pretrained, with every sampler and schedule objective"
    if path is None:
        return [title, "Not measured on this teacher."]
    if not path.is_file():
        raise InputError(f"--samplers: {path}: no such file; a .csv of benchmarks/samplers needed")
    rows = pd.read_csv(path)
    lacking = {"network", "solver", "objective", "floor", "budget", score} - set(rows)
    if lacking:
        raise InputError(
            f"--samplers: {path}: no column {', '.join(sorted(lacking))}; a .csv of"
            f" benchmarks/samplers measured by {score} needed"
        )
    teacher = rows[rows["network"] == "teacher"]
    few, floors = teacher[~teacher["floor"]], teacher[teacher["floor"]]
    cells: Cells = {
        (f"{solver} {objective}", k): list(part[score])  # type: ignore[misc]
        for (solver, objective, k), part in few.groupby(["solver", "objective", "budget"])
    }
    titles = {f"{s} {o}": f"{SOLVERS[s]}, `{o}`" for s, o in samplers(few)}
    many = [
        f"{SOLVERS[str(solver)]} with {part['evaluations'].mean():.0f} evaluations:"
        f" {value(part[score])}."
        for solver, part in floors.groupby("solver", sort=False)
    ]
    page = f"[{path.stem}.md]({path.stem}.md)"
    return [
        title,
        f"`{score}` by `studies/samplers.py`; {page} says of which network, and how many samples"
        " there are.",
        by_budget(titles, cells, bold=True),
        *([" ".join(many)] if many else []),
    ]


def work(
    rows: pd.DataFrame, variants: Mapping[str, Variant], projects: Sequence[Project]
) -> list[str]:
    """What search, training and sampling took, where that was measured."""
    intensity = projects[0].params.tracking.grid_intensity
    columns: dict[str, tuple[str, Callable[[float], float]]] = {
        "seconds": ("seconds", float),
        "images_per_second": ("images a second", float),
        "peak_memory_bytes": ("peak memory, GiB", lambda found: found / 2**30),
        "energy_kwh": ("Wh", lambda found: 1000 * found),
        "co2_grams": ("g CO2", float),
    }
    lines = []
    energy = any(str(name).endswith("energy_kwh") for name in rows)
    for stage, (of, once) in FOR_ALL.items():
        records = [read_usage(stage, p.folder).get(of) for p in projects[: 1 if once else None]]
        taken = [amounts(record, intensity) for record in records if record is not None]
        energy |= any("energy_kwh" in one for one in taken)
        if taken:
            cells = (
                [scale(one[key]) for one in taken if key in one]
                for key, (_, scale) in columns.items()
            )
            lines.append([f"{stage}: {of}", *map(value, cells)])
    parts = []
    if lines:
        head = ["for all budgets", *(title for title, _ in columns.values())]
        parts.append(markdown(head, lines))
    titles = {name: variant.title for name, variant in variants.items()}
    for what in WORK.values():
        for key, (title, scale) in columns.items():
            if f"{what}_{key}" not in rows:
                continue
            found = of_variants(rows, f"{what}_{key}")
            in_unit = {cell: [scale(one) for one in values] for cell, values in found.items()}
            measured = {name: of for name, of in titles.items() if name in {v for v, _ in found}}
            parts += [f"{what.capitalize()}: {title}", by_budget(measured, in_unit)]
    if not parts:
        return []
    notes = []
    if any(str(name).startswith("training_") for name in rows):
        notes.append(
            "Training includes compilation and validation. Methods that share a student at a budget"
            " show the same training."
        )
        if "reflow_uniform" in variants and len(projects[0].records) > 1:
            notes.append(
                "Uniform reflow is trained anew at each budget, and comes to the same weights."
            )
    if any(str(name).startswith("sampling_") for name in rows):
        notes.append("Sampling excludes the metrics.")
    notes.append(
        f"Energy is the GPU's own counter, CO2 at {intensity:g} g a kWh."
        if energy
        else "Energy was not measured: nothing counts it on a CPU."
    )
    return ["### What it took", " ".join(notes), *parts]


def plot(
    path: Path,
    rows: pd.DataFrame,
    variants: Mapping[str, Variant],
    score: str,
    floors: Sequence[float],
) -> None:
    """The score of every variant against NFE, with standard errors over seeds."""
    every_budget = sorted(rows["nfe"].unique())
    with figure(path, 8.4, 4.4) as ax:
        for name, variant in variants.items():
            of = rows[rows["variant"] == name]
            # A budget that was not measured has no number, which breaks the line.
            points = [mean_and_error(of.loc[of["nfe"] == k, score]) for k in every_budget]
            means, errors = zip(*points, strict=True)
            ax.errorbar(every_budget, means, yerr=errors, fmt="-" if variant.trained else "--",
                        marker="o", ms=4, color=COLOURS[name], label=variant.title)  # fmt: skip
        mean, _ = mean_and_error(floors)
        ax.axhline(mean, color="black", lw=0.8, ls=":", label="the teacher on the fine grid")
        ax.set(xlabel="network evaluations for one sample (NFE)", ylabel=score)
        log_scale(ax)
        ax.set_xticks(every_budget)
        ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


def picture(path: Path, project: Project, variants: Mapping[str, Variant]) -> None:
    """A corner of every grid of samples: a row for each variant, a column for each budget."""
    budgets = list(project.records)
    size = {"nrows": len(variants), "ncols": len(budgets), "squeeze": False}
    width, height = 1.7 * len(budgets) + 1.5, 0.75 * len(variants) + 0.3
    with figure(path, width, height, **size) as axes:
        for line, (name, variant) in zip(axes, variants.items(), strict=True):
            for ax, budget in zip(line, budgets, strict=True):
                file = project.folder / paths.samples(budget) / f"{name}.png"
                ax.set_xticks([])
                ax.set_yticks([])
                ax.spines[:].set_visible(False)
                if file.is_file():
                    ax.imshow(corner(file), cmap="gray", vmin=0, vmax=255)
            words = variant.title.replace(": ", ":\n").replace(", ", ",\n")
            line[0].set_ylabel(words, rotation=0, ha="right", va="center", fontsize=6)
        for ax, budget in zip(axes[0], budgets, strict=True):
            ax.set_title(f"K = {budget}", fontsize=8)
    with Image.open(path) as drawn:  # a third of the bytes, and hard to tell
        few = drawn.convert("RGB").quantize(256)
    few.save(path, optimize=True)


def corner(file: Path) -> np.ndarray:
    """The first rows and columns of a grid of samples."""
    with Image.open(file) as grid:
        width = grid.width * SHOWN_COLUMNS // COLUMNS
        return np.asarray(grid.crop((0, 0, width, grid.height * SHOWN_ROWS // ROWS)))


if __name__ == "__main__":
    main()

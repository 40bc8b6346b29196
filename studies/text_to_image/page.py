"""The page of the text-to-image study, from what its commands wrote.

    python -m studies.text_to_image.page FOLDER --teacher TEACHER

FOLDER: of `students.py`, judged by `judge.py` (judged.json, distances.npz, schedules.json,
students/*.json, pictures/*.png). TEACHER: the folder of `teacher.py` (teacher.json). Writes
docs/results/text-to-image.md and .csv, a plot and a picture. Text outside the marks is kept.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from boss_core.errors import InputError
from boss_core.io.files import replacing, write_bytes
from flows.report.plots import figure, log_scale
from studies.markdown import markdown, value, write_between
from studies.text_to_image.captions import CLASSES, SIDE
from studies.text_to_image.judge import DISTANCES, PICTURES, RESULTS
from studies.text_to_image.samples import TEACHER
from studies.text_to_image.students import SHIFT, STUDENTS
from studies.text_to_image.teacher import RECORD

NAME = "text-to-image"
ROWS = {
    ("guided", "uniform"): "guided, uniform steps",
    ("guided", "shifted"): f"guided, shifted by {SHIFT:g}",
    ("guided", "bellman"): "guided, Bellman steps",
    ("guided", "ab2"): "guided, `ab2` on its Bellman steps",
    ("lora", "bellman"): "student, LoRA",
    ("full", "bellman"): "student, all weights",
    ("lora", "ab2"): "student for `ab2`, LoRA",
    ("full", "ab2"): "student for `ab2`, all weights",
}
COLOURS = ("#999999", "#E69F00", "#56B4E9", "#009E73", "#882255", "#D55E00", "#CC79A7", "#0072B2")
JUDGES = {"classifier": "the CIFAR-10 classifier", "efficientnet_lite0": "EfficientNet-Lite0"}
REFERENCES = {TEACHER: "the teacher's samples", "real": "real test images"}
FACTOR = 4  # guided evaluations that a student is compared with, for each of its own


@dataclass(frozen=True)
class Study:
    """What the commands wrote. distances: (samples,) of each set."""

    folder: Path
    about: Mapping[str, Any]
    sets: Mapping[str, Mapping[str, Any]]
    distances: Mapping[str, NDArray[np.float64]]
    schedules: Mapping[str, Any]
    students: Mapping[str, Mapping[str, Any]]
    teacher: Mapping[str, Any]


def main(arguments: list[str] | None = None) -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    chosen = parser.parse_args(arguments)
    try:
        print(write_page(read_study(chosen.folder, chosen.teacher), chosen.docs))
    except InputError as error:
        sys.exit(f"error: {error}")


def read_study(folder: Path, teacher: Path) -> Study:
    """InputError where a file of the study is missing."""
    judged = _read(folder / RESULTS)
    path = folder / DISTANCES
    if not path.is_file():
        raise InputError(f"{path}: no such file; what the judge wrote needed")
    with np.load(path) as kept:
        distances = {name: kept[name].astype(np.float64) for name in kept.files}
    students = {p.stem: _read(p) for p in sorted((folder / STUDENTS).glob("*.json"))}
    return Study(
        folder, judged["about"], judged["sets"], distances,
        _read(folder / "schedules.json"), students, _read(teacher / RECORD),
    )  # fmt: skip


def _read(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"{path}: no such file; a finished study needed")
    return json.loads(path.read_text())


def write_page(study: Study, docs: Path) -> Path:
    """Page, table of all numbers, plot and picture."""
    rows = table(study)
    write_bytes(docs / f"results/{NAME}.csv", rows.to_csv(index=False).encode())
    plot(docs / f"images/{NAME}.png", rows, study)
    picture(docs / f"images/{NAME}-samples.png", study)
    parts = [
        "## What was measured",
        introduction(study),
        f"![Distance to the teacher by evaluations](../images/{NAME}.png)",
        "### Squared distance of latents to the teacher's",
        "Mean over samples from the same noise and prompt ± its standard error.",
        by_evaluations(study, lambda s: _shown(s["distance"])),
        f"### Students against {FACTOR} times their evaluations",
        *against_guided(study),
        "### Right class",
        "The share of images that the CIFAR-10 classifier takes for what the prompt names, in"
        f" percent; of the teacher's {_percent(study.sets[TEACHER]['right_class'])}.",
        by_evaluations(study, lambda s: _percent(s["right_class"])),
        *frechet_tables(study),
        "### Steps",
        steps(study),
        "### Training",
        training(study),
        "### Samples",
        "A class a column; every row starts from the same noise and prompts.",
        f"![Samples by budget](../images/{NAME}-samples.png)",
        "### How to run it",
        "```\npython -m studies.text_to_image.teacher TEACHER --data CIFAR10\n"
        "python -m studies.text_to_image.students STUDY --teacher TEACHER/pipeline\n"
        "python -m studies.text_to_image.judge STUDY --data CIFAR10 --classifier FILE\n"
        "python -m studies.text_to_image.page STUDY --teacher TEACHER\n```",
    ]
    path = docs / f"results/{NAME}.md"
    title = "A text-to-image pipeline straightened: CIFAR-10 with captions"
    write_between(path, "studies/text_to_image/page.py", title, parts)
    return path


def table(study: Study) -> pd.DataFrame:
    """A row for each set, with all that was measured of it."""
    rows = []
    for name, found in study.sets.items():
        row = {k: found[k] for k in ("kind", "steps", "solver", "budget", "evaluations")}
        for metric, amount in found.items():
            if isinstance(amount, dict):
                row |= {f"{metric}_{part}": number for part, number in amount.items()}
            elif metric.startswith("frechet"):
                row[metric] = amount
        rows.append({"set": name, **row})
    return pd.DataFrame(rows).sort_values(["kind", "steps", "evaluations"])


def introduction(study: Study) -> str:
    """Where the numbers come from."""
    size, about = study.teacher["size"], study.about
    fine = study.sets[TEACHER]
    minutes = sum(run["minutes"] for run in study.teacher["runs"])
    devices = " and ".join(sorted({run["device"] for run in study.teacher["runs"]}))
    return (
        f"The teacher is a `StableDiffusion3Pipeline` whose transformer has {size['layers']} layers"
        f" of width {size['width']} and {size['parameters'] / 1e6:.1f} million weights, with random"
        " CLIP text encoders that stay as they are, and pixels for latents. It was trained for"
        f" {minutes:.1f} minutes on one {devices}, by {study.teacher['steps']:,} steps and"
        f" {study.teacher['samples_seen']:,} images in all, drawn from {study.teacher['images']:,}"
        " of CIFAR-10's with captions made from their labels. Its samples, which all others are"
        f" compared with, take {fine['budget']} guided Euler steps: {fine['evaluations']:g} network"
        f" evaluations. {about['samples']:,} samples in each set, from the same noise and prompts"
        f" (teacher {about['teacher']}). Guidance takes two evaluations a step; a student has it"
        f" baked in and takes one. All numbers: [{NAME}.csv]({NAME}.csv)."
    )


def by_evaluations(study: Study, show: Any, sets: Mapping[str, Any] | None = None) -> str:
    """A table with a row for each way to sample and a column for each number of evaluations."""
    cells: dict[tuple[tuple[str, str], float], str] = {}
    for name, found in (sets or study.sets).items():
        if name != TEACHER and (text := show(found)):
            cells[(found["kind"], found["steps"]), found["evaluations"]] = text
    columns = sorted({of for _, of in cells})
    rows = [row for row in ROWS if any(row == of for of, _ in cells)]
    lines = [[ROWS[row], *(cells.get((row, c), "") for c in columns)] for row in rows]
    return markdown(["evaluations", *(f"{c:g}" for c in columns)], lines)


def _shown(amount: Mapping[str, float]) -> str:
    mean, error = amount["mean"], amount["error"]
    decimals = max(0, 2 - int(np.floor(np.log10(abs(mean))))) if mean else 0
    return f"{mean:.{decimals}f} ± {error:.{decimals}f}"


def _percent(amount: Mapping[str, float]) -> str:
    return f"{100 * amount['mean']:.1f} ± {100 * amount['error']:.1f}"


def frechet_tables(study: Study) -> Iterable[str]:
    """For each judge, to the teacher's samples and to real images."""
    for of_judge in study.about["judges"]:
        for to, words in REFERENCES.items():
            metric = f"frechet_{of_judge}_{to}"
            yield f"### Frechet distance to {words}, by {JUDGES.get(of_judge, of_judge)}"
            if metric in study.sets[TEACHER]:
                yield f"The teacher's own samples: {study.sets[TEACHER][metric]:.4g}."
            yield by_evaluations(study, lambda s, m=metric: f"{s[m]:.4g}")


def against_guided(study: Study) -> list[str]:
    """Each student beside the best guided set of `FACTOR` times its evaluations."""
    lines = []
    metrics = [f"frechet_{of}_{TEACHER}" for of in study.about["judges"]]
    for name, found in study.sets.items():
        if found["kind"] == "guided":
            continue
        rivals = [
            other for other, of in study.sets.items()
            if other != TEACHER and of["kind"] == "guided"
            and of["evaluations"] == FACTOR * found["evaluations"]
            and of["distance"]["mean"] > 0.0  # not the teacher's own steps
        ]  # fmt: skip
        if not rivals:
            continue
        best = min(rivals, key=lambda other: study.sets[other]["distance"]["mean"])
        ratio = found["distance"]["mean"] / study.sets[best]["distance"]["mean"]
        change = value(study.distances[name] - study.distances[best])
        compared = [
            f"{found[m]:.4g} / {min(study.sets[other][m] for other in rivals):.4g}" for m in metrics
        ]
        title = ROWS[found["kind"], found["steps"]]
        rival = ROWS["guided", study.sets[best]["steps"]]
        lines.append(
            (found["evaluations"], [
                f"{title}, {found['evaluations']:g}",
                f"{rival}, {study.sets[best]['evaluations']:g}", f"{ratio:.2f}", change, *compared,
            ])
        )  # fmt: skip
    if not lines:
        return [f"No guided set has {FACTOR} times the evaluations of a student."]
    titles = [
        "student, evaluations", "nearest guided, evaluations", "distance as a share",
        "difference in pairs",
        *(f"Frechet, {JUDGES.get(of, of)}, to the teacher: student / best guided"
          for of in study.about["judges"]),
    ]  # fmt: skip
    return [
        "The guided set is the one nearest to the teacher of all with so many evaluations; the"
        " difference is that of squared distances from the same noise, ± its standard error, below"
        " 0 where the student is nearer. The Frechet distance beside it is that of whichever"
        " guided set has the lowest.",
        markdown(titles, [line for _, line in sorted(lines, key=lambda pair: pair[0])]),
    ]


def steps(study: Study) -> str:
    """The noise levels of the searched steps."""
    lines = []
    for budget, of in sorted(study.schedules["schedules"].items(), key=lambda pair: int(pair[0])):
        for solver, schedule in of.items():
            levels = ", ".join(f"{1 - t:.3f}" for t in schedule["timesteps"])
            lines.append([budget, f"`{solver}`", levels])
    return markdown(["K", "solver", "noise levels"], lines)


def training(study: Study) -> str:
    """How each student was trained."""
    lines = []
    students = study.students.values()
    for found in sorted(students, key=lambda s: (s["kind"], s["steps"], s["budget"])):
        curve = found["curve"]
        lines.append(
            [
                ROWS[found["kind"], found["steps"]], str(found["budget"]),
                f"{found['weights']:,}", f"{found['iterations']:,}", str(found["batch_size"]),
                f"{found['learning_rate']:g}", f"{found['seconds']:.0f} s",
                f"{curve[0]['loss']:.4g} to {curve[-1]['loss']:.4g}",
            ]
        )  # fmt: skip
    columns = ["student", "K", "weights", "steps", "batch", "rate", "training", "loss"]
    return markdown(columns, lines)


def plot(path: Path, rows: pd.DataFrame, study: Study) -> None:
    """Latent distance, and the Frechet distance by the last judge, by evaluations."""
    metric = f"frechet_{study.about['judges'][-1]}_{TEACHER}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with figure(path, 9.0, 3.6, ncols=2) as axes:
        for (row, title), colour in zip(ROWS.items(), COLOURS, strict=True):
            of_row = rows[
                (rows["kind"] == row[0]) & (rows["steps"] == row[1]) & (rows["set"] != TEACHER)
            ]
            if not len(of_row):
                continue
            for ax, column in zip(axes, ("distance_mean", metric), strict=True):
                ax.plot(of_row["evaluations"], of_row[column], "o-", ms=3, color=colour,
                        label=title.replace("`", ""))  # fmt: skip
        judge = JUDGES.get(study.about["judges"][-1], study.about["judges"][-1])
        titles = "squared distance to the teacher's latents", f"Frechet distance by {judge}"
        for ax, title in zip(axes, titles, strict=True):
            ax.set_xscale("log", base=2)
            ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
            log_scale(ax)
            ax.set_xlabel("network evaluations")
            ax.set_title(title, fontsize=9)
        axes[0].legend(fontsize=7, frameon=False)


def picture(path: Path, study: Study) -> None:
    """The first sample of each class, by every way to sample with few evaluations."""
    shown = [(f"teacher, {study.sets[TEACHER]['evaluations']:g}", TEACHER)]
    budgets = sorted({s["budget"] for s in study.sets.values() if s["kind"] != "guided"})
    for k in budgets:
        for kind, of in (("guided", "uniform"), ("guided", "bellman"), ("lora", "bellman"),
                         ("full", "bellman"), ("lora", "ab2"), ("full", "ab2")):  # fmt: skip
            name = f"{kind}-{of}-{k}"
            if name in study.sets:
                evaluations = study.sets[name]["evaluations"]
                shown.append((f"{ROWS[kind, of].replace('`', '')}, {evaluations:g}", name))
    tile, label, scale = SIDE + 1, 250, 2
    size = label + scale * tile * len(CLASSES), scale * tile * len(shown)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for number, (title, name) in enumerate(shown):
        source = study.folder / PICTURES / f"{name}.png"
        if not source.is_file():
            raise InputError(f"{source}: no such file; what the judge wrote needed")
        strip = Image.open(source).crop((0, 0, tile * len(CLASSES), SIDE))
        strip = strip.resize((scale * strip.width, scale * strip.height), Image.Resampling.NEAREST)
        top = number * scale * tile
        sheet.paste(strip, (label, top))
        pen.text((4, top + scale * tile // 2 - 6), title, fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        sheet.save(part, format="png")


if __name__ == "__main__":
    main()

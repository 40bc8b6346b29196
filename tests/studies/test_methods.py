"""The page of `studies/methods.py`: its numbers are those of the records."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from flows.config import Method, load_params
from flows.measure.usage import read_usage
from studies.methods import main
from tests.helpers.project import Project
from tests.helpers.records import STUDENTS, VARIANTS, record
from tests.helpers.stages import run_after_teacher

SCORE = "frechet_classifier"
# The rows of the page, of all methods.
TITLES = {
    "pretrained_uniform": "pretrained, uniform steps",
    "pretrained_bellman": "pretrained, Bellman steps",
    "straightened_uniform": "straightened, uniform steps",
    "boss": "BOSS: straightened, Bellman steps",
    "boss_lora": "BOSS with LoRA, Bellman steps",
    "reflow_uniform": "uniform reflow, uniform steps",
    "reflow_distill": "distill-K reflow, uniform steps",
    "multistep": "pretrained, fitted weights",
    "chosen_uniform": "pretrained, uniform steps, ab2",
    "chosen": "pretrained, chosen steps, ab2",
    "chosen_straightened": "straightened, chosen steps, ab2",
}


def make(docs: Path, projects: Sequence[Project], *options: str) -> str:
    folders = [str(project.folder) for project in projects]
    main([*folders, "--name", "page", "--docs", str(docs), *options])
    return (docs / "results" / "page.md").read_text()


def tables(page: str) -> dict[str, dict[str, list[str]]]:
    """The cells of each table by the line before it, then by their row's title."""
    found: dict[str, dict[str, list[str]]] = {}
    blocks = page.split("\n\n")
    for before, block in itertools.pairwise(blocks):
        if block.startswith("| "):
            cells = [line[2:-2].split(" | ") for line in block.replace("*", "").splitlines()]
            found[before] = {row[0]: row[1:] for row in cells[2:]}
    return found


def another_seed(project: Project, folder: Path) -> Project:
    """A copy whose seed alone differs; its records are the first one's."""
    copy = project.copy(folder)
    copy.set({"seed": 1})
    return copy


def test_one_seed_without_records_of_usage(
    finished: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = finished.copy(tmp_path / "project")
    for path in (project.folder / "results/usage").iterdir():
        path.unlink()
    text = make(tmp_path / "docs", [project])
    assert capsys.readouterr().out.endswith("docs/results/page.md\n")
    shown = tables(text)
    for metric, decimals in ((SCORE, 2), ("kid_classifier", 4), ("recall_classifier", 4)):
        cells = shown[f"### `{metric}`"]
        assert len(cells) == len(VARIANTS)
        for variant in VARIANTS:
            for place, budget in enumerate((1, 3)):
                value = record(finished, budget)[variant][metric]
                assert cells[TITLES[variant]][place] == f"{value:.{decimals}f}"
        floor = record(finished, "teacher")["fine"][metric]
        assert f"The teacher with 12 Euler steps: {floor:.{decimals}f}." in text
    (changes,) = (cells for before, cells in shown.items() if before.startswith("Change of"))
    assert list(changes) == [TITLES[name] for name in VARIANTS if name != "boss"]
    for place, budget in enumerate((1, 3)):
        values = {name: record(finished, budget)[name][SCORE] for name in ("boss", "chosen")}
        change = 100 * (values["chosen"] - values["boss"]) / values["boss"]
        assert float(changes[TITLES["chosen"]][place]) == pytest.approx(change, abs=0.06)
    assert "±" not in text
    assert "One seed (0), so without a spread." in text
    assert "What it took" not in text
    assert "Not measured on this teacher." in text
    assert "iterations: 12" in text
    card = json.loads((project.folder / "models/features/card.json").read_text())
    assert f"right on {card['test_accuracy']:.1%} of 270 test images" in text


def test_the_lowest_distance_of_each_budget_is_bold(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    path = project.folder / "metrics" / "3.json"
    content = json.loads(path.read_text())
    content["chosen"][SCORE] = 0.125
    path.write_text(json.dumps(content))
    text = make(tmp_path / "docs", [project])
    (row,) = (line for line in text.splitlines() if "**0.125**" in line)
    assert row.startswith("| pretrained, chosen steps, ab2 |")
    recall = text.partition("### `recall_classifier`")[2].partition("###")[0]
    assert "**" not in recall


def test_text_outside_the_marks_is_kept(finished: Project, tmp_path: Path) -> None:
    make(tmp_path / "docs", [finished])
    page = tmp_path / "docs/results/page.md"
    page.write_text(page.read_text().replace("## What it says\n", "## What it says\n\nBy hand.\n"))
    assert "By hand." in make(tmp_path / "docs", [finished])


def test_projects_that_differ_by_more_than_their_seed_are_refused(
    finished: Project, tmp_path: Path
) -> None:
    other = another_seed(finished, tmp_path / "other")
    docs = tmp_path / "docs"
    with pytest.raises(SystemExit, match=f"{other.folder}: seed 1, as in {other.folder}; one"):
        make(docs, [finished, other, other])
    for changed, found in (
        ({"finetune.training.iterations": 13}, "finetune.training.iterations: 13, but 12 in"),
        ({"finetune.training.iterations": 12, "budgets": [3]}, r"budgets: \[3\], but \[1, 3\] in"),
    ):
        other.set(changed)
        with pytest.raises(SystemExit, match=found):
            make(docs, [finished, other])
    other.set({"budgets": [1, 3], "tracking.uri": "http://elsewhere", "device": "cpu"})
    path = other.folder / "samples" / "teacher" / "made_of.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"teacher_hash": "abc"}))
    with pytest.raises(SystemExit, match="teacher_hash: abc, but "):
        make(docs, [finished, other])
    path.unlink()
    with pytest.raises(SystemExit, match=r"samples/teacher/made_of.json: no such file"):
        make(docs, [finished, other])
    assert not docs.exists()
    path.write_text(json.dumps(content))
    assert "elsewhere" not in make(docs, [finished, other])


def test_samplers_of_the_pretrained_network(finished: Project, tmp_path: Path) -> None:
    columns = ["seed", "network", "solver", "objective", "floor", "budget", "evaluations", SCORE]
    rows = [
        (0, "teacher", "euler", "floor", True, 100, 100, 2.0),
        (1, "teacher", "euler", "floor", True, 100, 100, 3.0),
        (0, "teacher", "euler", "uniform", False, 1, 1, 9.0),
        (1, "teacher", "euler", "uniform", False, 1, 1, 11.0),
        (0, "teacher", "heun", "l2_squared", False, 2, 2, 5.0),
        (1, "teacher", "heun", "l2_squared", False, 2, 2, 5.5),
        (0, "student", "euler", "uniform", False, 1, 1, 1.0),
    ]
    path = tmp_path / "samplers-x.csv"
    pd.DataFrame(rows, columns=columns).to_csv(path, index=False)
    text = make(tmp_path / "docs", [finished], "--samplers", str(path))
    (found,) = (cells for cells in tables(text).values() if "Euler, `uniform`" in cells)
    # Of two values the standard error is half their difference.
    assert found == {
        "Euler, `uniform`": ["10.0 ± 1.0", ""],
        "Heun, `l2_squared`": ["", "5.25 ± 0.25"],
    }
    assert "Euler with 100 evaluations: 2.50 ± 0.50." in text
    assert "[samplers-x.md](samplers-x.md)" in text

    pd.DataFrame(rows, columns=[*columns[:-1], "fid"]).to_csv(path, index=False)
    with pytest.raises(SystemExit, match=f"no column {SCORE}; a .csv of benchmarks/samplers"):
        make(tmp_path / "docs", [finished], "--samplers", str(path))
    with pytest.raises(SystemExit, match=r"--samplers: .*none.csv: no such file"):
        make(tmp_path / "docs", [finished], "--samplers", str(tmp_path / "none.csv"))


def test_what_it_took(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    path = project.folder / "results/usage/finetune-3.json"
    content = json.loads(path.read_text())
    content["boss"] |= {"seconds": 50.0, "images": 1000, "energy_kwh": 0.25}
    path.write_text(json.dumps(content))
    (project.folder / "results/usage/evaluate-1.json").unlink()
    text = make(tmp_path / "docs", [project])
    shown = tables(text)
    boss = TITLES["boss"]
    assert shown["Training: seconds"][boss][1] == "50.0"
    assert shown["Training: images a second"][boss][1] == "20.0"
    assert shown["Training: Wh"] == {boss: ["250"]}
    assert shown["Training: g CO2"] == {boss: ["119"]}  # 0.25 kWh at 475 g a kWh
    assert set(shown["Training: seconds"]) == {TITLES[name] for name in STUDENTS}
    assert [len(row) for row in shown["Sampling: seconds"].values()] == [1] * len(VARIANTS)
    cost = read_usage("cost", project.folder)["search"]
    (shared,) = (cells for cells in shown.values() if "cost: search" in cells)
    assert float(shared["cost: search"][0]) == pytest.approx(cost["seconds"], rel=0.01)
    assert "the GPU's own counter, CO2 at 475 g a kWh" in text


@pytest.mark.long
@pytest.mark.slow
def test_all_methods_over_two_seeds(
    all_methods: tuple[Project, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = all_methods
    second = another_seed(first, tmp_path / "second")
    monkeypatch.chdir(second.folder)
    run_after_teacher(load_params())
    projects = (first, second)
    assert record(first, 3)["boss"] != record(second, 3)["boss"]

    text = make(tmp_path / "docs", projects)
    shown = tables(text)
    table = pd.read_csv(tmp_path / "docs/results/page.csv").set_index(["seed", "nfe", "variant"])
    assert len(table) == 2 * 2 * len(TITLES)
    for metric in (SCORE, "kid_classifier", "precision_classifier", "recall_classifier"):
        cells = shown[f"### `{metric}`"]
        assert list(cells) == list(TITLES.values())
        for variant, title in TITLES.items():
            for place, budget in enumerate((1, 3)):
                values = [record(project, budget)[variant][metric] for project in projects]
                assert list(table.loc[([0, 1], budget, variant), metric]) == values
                mean, error = cells[title][place].split(" ± ")
                assert float(mean) == pytest.approx(np.mean(values), rel=0.005)
                assert float(error) == pytest.approx(abs(np.diff(values)[0]) / 2, abs=0.005)
    (changes,) = (cells for before, cells in shown.items() if before.startswith("Change of"))
    for variant in ("boss_lora", "chosen"):
        ratios = [record(p, 3)[variant][SCORE] / record(p, 3)["boss"][SCORE] for p in projects]
        mean, error = changes[TITLES[variant]][1].split(" ± ")  # of changes, not of the means
        assert float(mean) == pytest.approx(100 * (np.mean(ratios) - 1), abs=0.6)
        assert float(error) == pytest.approx(100 * abs(np.diff(ratios)[0]) / 2, abs=0.6)
    for stage, what in (("finetune", "training"), ("evaluate", "sampling")):
        for seed, project in enumerate(projects):
            for name, taken in read_usage(f"{stage}-3", project.folder).items():
                assert table.loc[(seed, 3, name), f"{what}_seconds"] == taken["seconds"]
    assert set(shown["Training: seconds"]) == {TITLES[name] for name in get_args(Method)}
    (shared,) = (cells for cells in shown.values() if "cost: search" in cells)
    assert "±" in shared["cost: search"][0]
    assert "±" not in shared["teacher: training"][0]  # there is one
    assert "Uniform reflow is trained anew at each budget" in text
    for name in ("page-score.png", "page-samples.png"):
        with Image.open(tmp_path / "docs/images" / name) as image:
            assert min(image.size) > 600

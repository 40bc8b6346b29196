"""The whole pipeline on real DVC and MLflow, with tiny settings."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from markupsafe import escape

from boss_core.bellman.bootstrap import settled
from boss_core.checkpoints.folder import load_checkpoint
from boss_core.costs.matrix import CostMatrix
from boss_core.errors import InputError
from boss_core.evaluation.frechet import image_hash
from boss_core.io.files import sha256
from flows.cli.table import table
from flows.config import load_params
from flows.stages import check, cost
from tests.helpers.costs import cost_matrix
from tests.helpers.in_process import boss
from tests.helpers.project import Project
from tests.helpers.records import PAPERS, STUDENTS, VARIANTS, record
from tests.helpers.rectified_flow import publish, settings, small
from tests.helpers.stages import run_all


def test_every_budget_has_its_record_with_provenance(finished: Project) -> None:
    models = finished.folder / "models"
    reference = np.load(finished.folder / "data" / "train.npy")[:100]
    for budget in (1, 3):
        found = record(finished, budget)
        assert found["nfe"] == budget
        assert found["samples"] == 70
        assert found["reference_samples"] == 100
        assert found["reference_hash"] == image_hash(reference)
        assert found["extractor_hash"] == sha256(models / "features" / "classifier.safetensors")
        assert found["teacher_hash"] == sha256(models / "teacher" / "model.safetensors")
        for variant in VARIANTS:
            assert np.isfinite(found[variant]["frechet_classifier"])
            assert "fid" not in found[variant]
    assert record(finished, "teacher")["nfe"] == 12


def test_one_step_has_one_schedule_and_so_one_student(finished: Project) -> None:
    found = record(finished, 1)
    assert found["boss"] == found["straightened_uniform"]
    assert found["pretrained_bellman"] == found["pretrained_uniform"] == found["multistep"]
    assert found["chosen"] == found["chosen_uniform"] == found["pretrained_uniform"]
    assert found["chosen_straightened"] == found["boss"]
    assert len(set(found["student_hash"].values())) == 1


def test_students_start_from_the_teacher_and_carry_their_schedule(finished: Project) -> None:
    teacher, card = load_checkpoint(finished.folder / "models" / "teacher")
    schedules = json.loads((finished.folder / "results" / "schedules.json").read_text())
    for name, steps in STUDENTS.items():
        student, student_card = load_checkpoint(finished.folder / "models/student/3" / name)
        assert student_card.teacher_hash == card.weights_sha256
        assert student_card.schedule is not None
        assert student_card.schedule.model_dump(mode="json") == schedules["3"][steps]
        assert student_card.schedule.teacher_hash == card.weights_sha256
        # Twelve small steps away from the teacher's weights, not from random ones.
        distance = sum(
            float((a - b).norm())
            for a, b in zip(student.parameters(), teacher.parameters(), strict=True)
        )
        size = sum(float(p.norm()) for p in teacher.parameters())
        assert 0 < distance < 0.3 * size


def test_trajectories_hold_the_union_of_knots_and_are_split(finished: Project) -> None:
    states = np.load(finished.folder / "trajectories" / "states.npy", mmap_mode="r")
    card = json.loads((finished.folder / "trajectories" / "card.json").read_text())
    schedules = json.loads((finished.folder / "results" / "schedules.json").read_text())
    steps = STUDENTS.values()
    knots = {i for k in ("1", "3") for s in steps for i in schedules[k][s]["indices"]}
    assert card["knots"] == sorted(knots)
    assert states.shape == (60, len(knots), 1, 8, 8)
    curve = pd.read_csv(finished.folder / "results" / "curves" / "3.csv")
    assert {"straightened_uniform_validation_loss_segment_2", "boss_validation_loss"} <= set(curve)
    assert "chosen_straightened_validation_loss_segment_2" in curve


def test_schedules_are_the_papers_and_the_chosen_ones(finished: Project) -> None:
    schedules = json.loads((finished.folder / "results" / "schedules.json").read_text())
    for budget in ("1", "3"):
        found = schedules[budget]
        solvers = {name: of_name["solver"] for name, of_name in found.items()}
        assert {solvers.pop("chosen"), solvers.pop("chosen_uniform")} == {"ab2"}
        assert solvers.pop("multistep") == "multistep"
        assert set(solvers.values()) == {"euler"}
        assert [len(of) for of in found["multistep"]["weights"]] == [1, 2, 3][: int(budget)]
        assert found["bellman"]["objective"] == "l2_squared"
        assert found["chosen_uniform"]["indices"] == found["uniform"]["indices"]
    # Of one step, every solver's is Euler's; of two, the error differs.
    errors = {k: v["predicted_error"] for k, v in schedules["1"].items()}
    assert errors["chosen"] == pytest.approx(errors["bellman"], rel=1e-9)
    errors = {k: v["predicted_error"] for k, v in schedules["3"].items()}
    assert errors["chosen_uniform"] != pytest.approx(errors["uniform"], rel=1e-3)
    table = pd.read_csv(finished.folder / "results" / "predicted_error.csv")
    assert (table["bellman_low"] <= table["bellman"] * (1 + 1e-9)).all()
    assert (table["bellman"] <= table["bellman_high"] * (1 + 1e-9)).all()
    assert table["bellman_stability"].between(0, 1).all()


@pytest.mark.long
@pytest.mark.slow
def test_the_paper_alone(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "paper")
    before = (project.folder / "params.yaml").read_bytes()
    project.set({"budgets": [3], "schedule.solver": "euler", "schedule.objective": "l2_squared"})
    shown = project.run("boss", "repro").stdout
    assert "chosen" not in shown
    found = record(project, 3)
    columns = [*PAPERS, "multistep"]
    assert [name for name in VARIANTS if name in found] == columns
    for name in columns:
        assert found[name] == record(finished, 3)[name]
    assert list(pd.read_csv(project.folder / "results" / "frechet.csv")) == ["nfe", *columns]
    project.run("dvc", "plots", "show", "--out", "plots")
    page = (project.folder / "plots" / "index.html").read_text()
    assert "Frechet distance against NFE" in page

    # What was there of the other budget is gone, and comes back from the cache with it.
    assert "removed outputs of budgets not in params.yaml, which DVC's cache has: 1\n" in shown
    for name in ("models/student", "samples", "metrics", "results/curves"):
        assert {path.stem for path in (project.folder / name).iterdir()} <= {"3", "teacher"}
    usage = {path.stem for path in (project.folder / "results" / "usage").iterdir()}
    # Those are no outputs, and stay.
    assert {"finetune-1", "finetune-3", "evaluate-1", "evaluate-3"} <= usage
    (project.folder / "params.yaml").write_bytes(before)
    assert "> python -m flows" not in project.run("boss", "repro").stdout
    assert project.outputs() == finished.outputs()


def test_costs_are_measured_until_the_steps_stay(
    finished: Project,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    project = finished.copy(tmp_path / "auto")
    monkeypatch.chdir(project.folder)

    def measured(change: dict[str, object]) -> tuple[CostMatrix, str]:
        project.set(change)
        cost.main(load_params())
        return cost_matrix(project.folder / "results" / "cost.npz"), capsys.readouterr().out

    matrix, shown = measured({"cost.samples": "auto", "cost.max_samples": 40})
    assert f"cost: stopped at {matrix.samples} trajectories" in shown
    assert settled(matrix, range(2, 11)) == ("cost.max_samples" not in shown)
    assert matrix.samples == 40 or "cost.max_samples" not in shown

    # On four steps there are few places for a knot: it is soon sure of them.
    few, shown = measured({"cost.grid": 4, "cost.max_samples": 400, "cost.batch_size": 20})
    assert f"cost: stopped at {few.samples} trajectories: no knot of the paper's" in shown
    assert few.samples < 400
    assert settled(few, range(2, 5))

    on_heun, _ = measured({"cost.grid": 12, "cost.samples": 24, "cost.reference": "heun"})
    euler = cost_matrix(finished.folder / "results" / "cost.npz")
    assert (on_heun.cost.diagonal(1) > 0).all()
    assert (euler.cost.diagonal(1) == 0).all()
    # Both are of the same 24 noises: twelve steps of either path lead to nearly the same place.
    assert on_heun.cost[0, 12] == pytest.approx(euler.cost[0, 12], rel=0.3)


def test_the_report_is_one_file_with_everything(finished: Project) -> None:
    html = (finished.folder / "results" / "report.html").read_text()
    # Plots; real images and the teacher's; of each budget the samples, and what they differ by.
    assert html.count("data:image/png;base64,") == 6 + 2 + 2 * 2 * len(VARIANTS)
    section = html.partition("<h2>What came out</h2>")[2].partition("<h2>")[0]
    commands = re.findall("<code>(boss sample .*?)</code>", section)
    assert len(commands) == 2
    for budget, command in zip((1, 3), commands, strict=True):
        said = boss(
            finished, *shlex.split(command)[1:], "-n", "4", "--out", "build/said.png"
        ).stdout
        assert f"build/said.png: 4 images, {budget} network evaluation" in said
    assert html.count(str(escape((finished.folder / "params.yaml").read_text()))) == 1
    assert "searched by the features of the classifier, which therefore does not rank" in html
    assert not re.search(r"""(src|href)=["'](?!data:)""", html)
    section = html.partition("<h2>Predicted against measured</h2>")[2].partition("</table>")[0]
    table = [re.findall("<td>(.*?)</td>", line) for line in section.splitlines() if "<td>" in line]
    schedules = json.loads((finished.folder / "results" / "schedules.json").read_text())
    steps = {"pretrained_uniform": "uniform", "pretrained_bellman": "bellman"}
    steps |= {name: name for name in ("multistep", "chosen_uniform", "chosen")}
    assert len(table) == 2 * len(steps)
    rows = iter(table)
    for budget in (1, 3):
        for variant, name in steps.items():
            (k, _, predicted, interval, distance), of = next(rows), schedules[str(budget)][name]
            assert k == str(budget)
            assert float(predicted) == pytest.approx(of["predicted_error"], rel=1e-3)
            low, high = map(float, interval.split(" to "))
            assert low <= of["predicted_error"] * 1.001
            assert high >= of["predicted_error"] * 0.999
            measured = record(finished, budget)[variant]["frechet_second_classifier"]
            assert float(distance) == pytest.approx(measured, rel=1e-3)
    for budget in (1, 3):
        for variant in VARIANTS:
            assert f"{record(finished, budget)[variant]['frechet_classifier']:.4g}" in html


def test_what_is_best_is_ahead_by_more_than_chance(finished: Project) -> None:
    """Table, report and record, of budgets whose networks are hardly trained: each by the
    replicates beside the samples, Student's t of 19 degrees of freedom and its rivals by hand."""
    html = (finished.folder / "results" / "report.html").read_text()
    shown = boss(finished, "table").stdout
    for name in ("second_classifier", "classifier"):
        metric = f"frechet_{name}"
        section = html.partition(f"<h2>{metric} for every budget")[2].partition("</table>")[0]
        assert f"{metric} (lower is better): 70 samples against 100 real images; {name}: " in shown
        for budget in (1, 3):
            of, path = record(finished, budget), f"samples/{budget}/replicates.json"
            replicates = {
                variant: np.array(found[metric])
                for variant, found in json.loads((finished.folder / path).read_text()).items()
            }
            for variant, found in replicates.items():
                error = np.sqrt(19 * np.var(found))
                assert of[variant][f"{metric}_se"] == pytest.approx(error, rel=1e-9)
            searched = {"chosen", "chosen_straightened"} if name == "classifier" else set()
            ranked = [v for v in VARIANTS if v not in searched]
            nearest = min(ranked, key=lambda v: of[v][metric])
            rivals = len({of[v][metric] for v in ranked}) - 1
            bar = scipy.stats.t.ppf(1 - 0.025 / max(1, rivals), 19)
            level = {
                v for v in ranked
                if of[v][metric] - of[nearest][metric]
                <= bar * np.sqrt(19 * np.var(replicates[v] - replicates[nearest]))
            }  # fmt: skip
            mark = "*" if len(level) == 1 else "="
            row = section.partition(f"<tr><td>{budget}</td>")[2].partition("</tr>")[0]
            cells = re.findall(r"<td( class=\"best\")?>([^<]*)<br><small>± ([^<]*)<", row)
            for variant, (best, value, error) in zip(VARIANTS, cells, strict=True):
                text = f"{of[variant][metric]:.4g}"
                marked = f"({text})" if variant in searched else text
                assert value == (f"{text}{mark}" if variant in level else marked)
                assert bool(best) == (variant in level)
                assert error == f"{of[variant][f'{metric}_se']:.2g}"
                assert value in shown


def test_the_table_shows_every_budget(finished: Project) -> None:
    shown = boss(finished, "table").stdout
    for budget in (1, 3):
        for variant in VARIANTS:
            assert f"{record(finished, budget)[variant]['frechet_classifier']:.4g}" in shown
    assert "70 samples against 100 real images" in shown


def test_a_narrow_table_has_a_line_for_each_method(
    finished: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the same values and marks as the wide one."""
    monkeypatch.chdir(finished.folder)
    monkeypatch.delenv("COLUMNS", raising=False)  # of who started the tests
    table()
    wide = capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "52")
    table()
    narrow = capsys.readouterr().out
    rows = [line for line in wide.splitlines() if re.match(r" *(1|3|12) ", line)]
    expected = [v for row in rows for v in row.replace("(the floor)", "").split()[1:]]
    assert len(expected) == 2 * (2 * len(VARIANTS) + 1)  # by both judges
    assert re.findall(r"(\S+) ±[\d.]+ *$", narrow, flags=re.MULTILINE) == expected
    assert max(map(len, narrow.splitlines()[1:20])) <= 52


def test_a_second_run_does_nothing(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "again")
    shown = project.run("boss", "repro").stdout
    assert "Running stage" not in shown
    assert "up to date" in shown
    assert "up to date" in project.run("dvc", "status").stdout
    assert project.outputs() == finished.outputs()
    assert project.run("git", "status", "--short").stdout == ""


def test_dvc_shows_metrics_parameters_and_plots(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "dvc")
    shown = json.loads(project.run("dvc", "metrics", "show", "--json").stdout)
    files = {name: of["data"] for name, of in shown[""]["data"].items()}
    assert set(files) == {"metrics/1.json", "metrics/3.json", "metrics/teacher.json"}
    for found in files.values():  # a column of `dvc exp show` each, and none of them a word
        columns = pd.json_normalize(found).iloc[0]
        assert all(isinstance(value, int | float) for value in columns), columns
    metrics = files["metrics/3.json"]
    assert metrics["boss"]["frechet_classifier"] == pytest.approx(
        record(project, 3)["boss"]["frechet_classifier"]
    )
    project.set({"finetune.training.iterations": 13})
    diff = json.loads(project.run("dvc", "params", "diff", "--json").stdout)
    assert diff["params.yaml"]["finetune.training.iterations"] == {
        "old": 12,
        "new": 13,
        "diff": 1,
    }
    project.run("dvc", "plots", "show", "--out", "plots")
    page = (project.folder / "plots" / "index.html").read_text()
    assert "Frechet distance against NFE" in page
    assert "Frechet distance against NFE, chosen steps" in page
    assert "Predicted error against NFE" in page


@pytest.mark.slow
def test_an_experiment_runs_what_it_changes_and_is_listed(
    finished: Project, tmp_path: Path
) -> None:
    """A parameter of one stage. What follows from another stage's, in an experiment of `boss run`:
    tests/flows/orchestration/test_experiments.py."""
    project = finished.copy(tmp_path / "exp")
    change = "tracking.grid_intensity=100"
    shown = project.run("dvc", "exp", "run", "-n", "cleaner", "-S", change).stdout
    ran = set(re.findall(r"Running stage '([^']+)'", shown))
    assert ran == {"check", "report"}  # which read the whole file
    listed = pd.read_csv(
        pd.io.common.StringIO(project.run("dvc", "exp", "show", "--csv").stdout)
    ).set_index("Experiment")
    assert listed.loc["cleaner", "tracking.grid_intensity"] == 100
    project.run("dvc", "exp", "run", "-S", "finetune.training.iteratoins=5", code=255)


def test_deleted_outputs_come_back_without_running(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "deleted")
    (project.folder / "metrics" / "3.json").unlink()
    shown = project.run("boss", "repro").stdout
    assert "Running stage" not in shown or "is cached - skipping run" in shown
    assert project.outputs() == finished.outputs()


def test_a_teacher_of_ones_own(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "own")
    folder = project.folder / "inputs" / "mine"
    folder.mkdir()
    for name in ("model.safetensors", "card.json"):
        (folder / name).write_bytes((project.folder / "models" / "teacher" / name).read_bytes())
    project.set({"teacher.source": "checkpoint", "teacher.path": "inputs/mine"})
    shown = project.run("dvc", "repro", "trajectories").stdout
    assert "python -m flows.stages.teacher" in shown
    assert "python -m flows.stages.cost" not in shown  # the same weights: nothing after changes
    before = finished.outputs()
    assert (
        project.outputs()["models/teacher/model.safetensors"]
        == (before["models/teacher/model.safetensors"])
    )


def test_a_teacher_of_rectified_flow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the published file to records: every stage with the other architecture."""
    project = Project.bare(tmp_path)
    monkeypatch.chdir(tmp_path)
    network = small("ncsnpp")
    folder = project.folder / "inputs" / "mine"
    folder.mkdir()
    publish(folder / "checkpoint_0.pth", network)
    (folder / "config.json").write_text(json.dumps(settings("ncsnpp")))
    change = {
        "teacher.source": "checkpoint",
        "teacher.path": "inputs/mine/checkpoint_0.pth",
        "teacher.config": "inputs/mine/config.json",
        "budgets": [3],
    }
    project.set(change | {"teacher.config": "afhq_dog"})
    with pytest.raises(InputError, match="config: 'afhq_dog' is no file and no published network"):
        check.check(load_params())

    project.set(change)
    run_all(load_params())
    teacher, card = load_checkpoint(project.folder / "models" / "teacher")
    assert card.architecture == "ncsnpp"
    for name, tensor in network.state_dict().items():
        assert torch.equal(teacher.state_dict()[name], tensor)
    student, student_card = load_checkpoint(project.folder / "models/student/3/boss")
    assert student_card.architecture == "ncsnpp"
    assert student_card.teacher_hash == card.weights_sha256 == record(project, 3)["teacher_hash"]
    found, fixed = student.state_dict(), "all_modules.0.W"  # the frequencies of the embedding
    assert torch.equal(found[fixed], teacher.state_dict()[fixed])
    moved = [n for n, tensor in teacher.state_dict().items() if not torch.equal(found[n], tensor)]
    assert len(moved) > 0.9 * len(found)
    curve = pd.read_csv(project.folder / "results" / "curves" / "3.csv")
    assert np.isfinite(curve["boss_validation_loss"]).all()

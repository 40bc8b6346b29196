"""What the stages took: records beside the outputs, in MLflow and on the terminal."""

import json
import re
from pathlib import Path

import mlflow
import pytest

from boss_core.io.files import sha256
from flows import paths
from flows.measure.energy import COUNTER
from flows.measure.usage import read_usage, stages
from flows.records.json_files import write_json
from flows.stages.report import remove_others
from tests.helpers.in_process import boss
from tests.helpers.project import Project
from tests.helpers.records import STUDENTS, VARIANTS

# Of `tests.helpers.project.TINY`: parts of each stage, and the images of each.
EXPECTED = {
    "features": (["training", "second_classifier"], 40 * 128),
    "teacher": (["training"], 30 * 128),
    "cost": (["search"], 24),
    "schedule": (["search"], None),
    "trajectories": (["generation"], 60),
    "finetune-1": (list(STUDENTS), 12 * 64),
    "finetune-3": (list(STUDENTS), 12 * 64),
    "evaluate-1": (list(VARIANTS), 70),
    "evaluate-3": (list(VARIANTS), 70),
    "floor": (["fine"], 70),
}


def test_every_measured_stage_has_its_record(finished: Project) -> None:
    assert set(stages([1, 3])) == set(EXPECTED)
    for stage, (names, images) in EXPECTED.items():
        found = read_usage(stage, finished.folder)
        assert list(found) == names
        for record in found.values():
            assert record.get("images") == images
            assert record["seconds"] > 0
            assert record["peak_memory_bytes"] > 2**27  # torch alone takes as much
            assert "energy_kwh" not in record  # nothing measures a CPU's


def test_names_that_share_a_student_share_its_record(finished: Project) -> None:
    first, *others = read_usage("finetune-1", finished.folder).values()
    assert all(other == first for other in others)  # of one step there is one schedule
    three = read_usage("finetune-3", finished.folder)
    assert three["straightened_uniform"] != three["chosen_straightened"]


def test_records_are_no_outputs(finished: Project) -> None:
    assert "results/usage" not in (finished.folder / "dvc.lock").read_text()
    assert "results/usage" not in finished.run("git", "ls-files").stdout


def test_a_record_is_not_read_beside_another_result(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    curve = project.folder / "results/curves/3.csv"
    whole = curve.read_text()
    curve.unlink()
    curve.write_text(whole + "\n")
    assert read_usage("finetune-3", project.folder) == {}
    assert read_usage("finetune-1", project.folder)
    project.run("dvc", "checkout", "--force", "results/curves/3.csv")  # restored: its own again
    assert read_usage("finetune-3", project.folder) == read_usage("finetune-3", finished.folder)
    curve.unlink()
    assert read_usage("finetune-3", project.folder) == {}


@pytest.fixture
def on_a_gpu(finished: Project, tmp_path: Path) -> Project:
    """The finished project as if a GPU had counted 0.002 kWh in two of its parts."""
    project = finished.copy(tmp_path / "project")
    for stage, name in (("finetune-3", "boss"), ("evaluate-3", "boss")):
        path = project.folder / f"results/usage/{stage}.json"
        content = json.loads(path.read_text())
        content[name] |= {"energy_kwh": 0.002, "energy_source": COUNTER}
        path.write_text(json.dumps(content))
    return project


def test_mlflow_shows_them_for_each_budget(on_a_gpu: Project) -> None:
    project = on_a_gpu
    database = project.folder / "mlflow.db"
    database.unlink()
    for path in (project.folder / "results/usage").glob("*-1.json"):
        path.unlink()  # as of stages that were restored
    project.set({"tracking.grid_intensity": 300.0})
    boss(project, "track", "--rebuild")
    client = mlflow.MlflowClient(f"sqlite:///{database}")
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    runs = {run.info.run_name: run.data for run in client.search_runs([experiment.experiment_id])}
    metrics = runs["boss K=3"].metrics
    training = read_usage("finetune-3", project.folder)["boss"]
    assert metrics["usage/training_seconds"] == training["seconds"]
    assert metrics["usage/training_images_per_second"] == 12 * 64 / training["seconds"]
    assert metrics["usage/training_energy_kwh"] == 0.002
    assert metrics["usage/training_co2_grams"] == pytest.approx(0.6)
    assert runs["K=3"].params["tracking.grid_intensity"] == "300.0"
    sampling = read_usage("evaluate-3", project.folder)
    for name in VARIANTS:
        found = runs[f"{name} K=3"].metrics
        assert found["seconds"] == sampling[name]["seconds"]
        assert found["usage/sampling_images_per_second"] == 70 / sampling[name]["seconds"]
        assert ("usage/training_seconds" in found) == (name in STUDENTS)
    assert metrics["usage/sampling_co2_grams"] == pytest.approx(0.6)
    assert "usage/sampling_co2_grams" not in runs["chosen K=3"].metrics
    teacher = read_usage("teacher", project.folder)["training"]
    assert runs["teacher K=12"].metrics["usage/training_seconds"] == teacher["seconds"]
    cost = read_usage("cost", project.folder)["search"]
    # That of all budgets stands with each, and that of a method with the method alone.
    of_one = {name for name in runs["K=3"].metrics if name.startswith("usage/")}
    assert {name.split("/")[1] for name in of_one} == {"cost", "schedule", "trajectories"}
    for name in ("K=1", "K=3"):
        assert runs[name].metrics["usage/cost/search_seconds"] == cost["seconds"]
        assert "usage/schedule/search_images_per_second" not in runs[name].metrics

    again = boss(project, "track", "--rebuild").stdout
    assert again.splitlines() == ["K=1: in MLflow", "K=3: in MLflow"]
    assert len(client.search_runs([experiment.experiment_id])) == len(runs)
    # The pipeline and its teacher, budgets, and methods at each.
    assert len(runs) == 2 + 2 * (1 + len(VARIANTS))
    assert "seconds" not in runs["boss K=1"].metrics


def test_a_table_of_them(on_a_gpu: Project) -> None:
    project = on_a_gpu
    (project.folder / "results/usage/teacher.json").unlink()
    shown = boss(project, "usage").stdout
    rows = {
        match[1]: match[2].split()
        for line in shown.splitlines()
        if (match := re.fullmatch(r" (\S+ [a-z_]+) {2,}(.*)", line))
    }
    assert "teacher training" not in rows
    assert len(rows) == sum(len(names) for names, _ in EXPECTED.values()) - 1
    training = read_usage("finetune-3", project.folder)["boss"]
    seconds, rate, memory, energy, carbon = rows["finetune@3 boss"]
    assert seconds == f"{training['seconds']:.2f}"
    assert rate == f"{768 / training['seconds']:,.0f}"
    assert memory == f"{training['peak_memory_bytes'] / 2**30:.2f}"
    assert (energy, carbon) == ("2", "0.95")  # Wh, and g at 475 g a kWh
    assert len(rows["evaluate@3 chosen"]) == 3


def test_the_records_of_other_budgets_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cache has them: taken away with the outputs of their budget, they would not come back."""
    monkeypatch.chdir(tmp_path)
    outputs = [paths.metrics(3), paths.curves(3), paths.samples(3) / "boss.png"]
    records = [paths.usage("evaluate-3"), paths.usage("finetune-3")]
    for path in (*outputs, *records, paths.metrics(1)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    remove_others([1])
    assert not any(path.exists() for path in outputs)
    assert all(path.exists() for path in (*records, paths.metrics(1)))


def test_a_record_without_its_numbers_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_json(paths.metrics(3), {"nfe": 3})
    whole = {"seconds": 1.0, "peak_memory_bytes": 2, "result": sha256(paths.metrics(3))}
    lacks = {"result": whole["result"]}
    write_json(paths.usage("evaluate-3"), {"a": whole, "b": lacks, "c": 1, "d": {}})
    assert read_usage("evaluate-3") == {"a": whole}

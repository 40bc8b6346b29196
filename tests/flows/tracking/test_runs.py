"""MLflow as a projection of the record: a real database."""

import hashlib
import json
import shutil
import signal
import sqlite3
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow.entities import Run

from boss_core.errors import InputError
from flows.config import load_params
from flows.measure.usage import read_usage
from flows.records.passwords import without_password
from flows.tracking.connection import tracking_uri
from flows.tracking.runs import track_budget
from tests.helpers.in_process import boss
from tests.helpers.mlflow_runs import runs
from tests.helpers.project import Project, running_in
from tests.helpers.records import STUDENTS, VARIANTS, record
from tests.helpers.servers import free_port, wait_for


def test_one_run_for_each_budget_with_everything(finished: Project) -> None:
    all_runs = [run for run in runs(finished) if "method" not in run.data.tags]
    found = {run.info.run_name: run for run in all_runs}
    run = found.pop("K=3")
    assert found.pop("K=1").data.tags["mlflow.parentRunId"] == run.data.tags["mlflow.parentRunId"]
    (parent,) = found.values()
    assert parent.info.run_id == run.data.tags["mlflow.parentRunId"]
    of_budget = record(finished, 3)
    assert run.info.status == "FINISHED"
    of_all = {"cost/search", "schedule/search", "trajectories/generation"}
    usage = {name for name in run.data.metrics if name.startswith("usage/")}
    assert {name.split("/", 1)[1].split("_")[0] for name in usage} == of_all
    assert run.data.metrics.keys() - usage == {"nfe", "samples", "reference_samples"}
    assert run.data.params["nfe"] == "3"
    assert run.data.params["finetune.training.iterations"] == "12"
    assert run.data.tags["teacher_hash"] == of_budget["teacher_hash"]
    assert run.data.tags["student_hash.boss"] == of_budget["student_hash"]["boss"]
    head = finished.run("git", "rev-list", "--max-parents=0", "HEAD").stdout.strip()
    assert run.data.tags["git_commit"] == head

    client = mlflow.MlflowClient(f"sqlite:///{finished.folder / 'mlflow.db'}")
    schedule = json.loads((finished.folder / "results" / "schedules.json").read_text())["3"]
    text = json.dumps([schedule["bellman"]], sort_keys=True).encode()
    assert run.data.tags["schedule_hash.bellman"] == hashlib.sha256(text).hexdigest()
    assert run.data.tags["variant"].split(",") == list(VARIANTS)
    assert run.data.tags["chosen.objective"] == schedule["chosen"]["objective"]
    assert run.data.params["schedule.solver"] == "ab2"
    assert run.data.tags["judge"] == "second_classifier"
    level = run.data.tags["best"].split(",")
    nearest = min(VARIANTS, key=lambda name: of_budget[name]["frechet_second_classifier"])
    assert nearest in level
    assert run.data.tags["best.ahead_by_more_than_chance"] == str(level == [nearest]).lower()
    assert "frechet_second_classifier" in run.data.tags["mlflow.note.content"]
    assert "second_classifier searched nothing and decides" in run.data.tags["mlflow.note.content"]
    names = {a.path for a in client.list_artifacts(run.info.run_id)}
    assert names == {"schedules.json", "3.json", "samples"}
    grids = {a.path for a in client.list_artifacts(run.info.run_id, "samples")}
    assert "samples/boss.png" in grids


def test_the_parent_says_what_is_best_and_has_each_methods_curve(finished: Project) -> None:
    found = {run.info.run_name: run for run in runs(finished)}
    (parent,) = [run for run in found.values() if "boss.pipeline" in run.data.tags]
    assert parent.info.status == "FINISHED"
    of_budget = [found[f"K={k}"].data.tags["mlflow.note.content"] for k in (1, 3)]
    assert all("70 samples against 100." in words for words in of_budget)
    expected = f"- **K=1**: {of_budget[0]}\n- **K=3**: {of_budget[1]}"
    assert parent.data.tags["mlflow.note.content"] == expected
    # Two parents side by side: a chart for each method, drawn against the budget.
    assert set(parent.data.metrics) == {f"frechet/{name}" for name in VARIANTS}
    client = mlflow.MlflowClient(f"sqlite:///{finished.folder / 'mlflow.db'}")
    for name in VARIANTS:
        history = client.get_metric_history(parent.info.run_id, f"frechet/{name}")
        assert {m.step: m.value for m in history} == {
            k: record(finished, k)[name]["frechet_second_classifier"] for k in (1, 3)
        }


def test_a_run_for_each_budget_and_method(finished: Project) -> None:
    found = {r.info.run_name: r for r in runs(finished) if "boss.budget_run" in r.data.tags}
    records = {
        k: json.loads((finished.folder / "metrics" / f"{k}.json").read_text()) for k in (1, 3)
    }
    schedules = json.loads((finished.folder / "results" / "schedules.json").read_text())
    assert set(found) == {f"{v} K={k}" for k in (1, 3) for v in VARIANTS if v in records[k]}
    (parent,) = [run for run in runs(finished) if "boss.pipeline" in run.data.tags]
    for k, of_budget in records.items():
        ranks = []
        for name in VARIANTS:
            run = found[f"{name} K={k}"]
            shown, tags = run.data.metrics, run.data.tags
            assert shown["frechet"] == of_budget[name]["frechet_second_classifier"]
            assert shown["kid"] == of_budget[name]["kid_second_classifier"]
            assert shown["frechet_classifier"] == of_budget[name]["frechet_classifier"]
            blocks = json.loads((finished.folder / f"samples/{k}/replicates.json").read_text())
            of_blocks = pd.Series(blocks[name]["frechet_second_classifier"])
            error = ((of_blocks - of_blocks.mean()) ** 2).sum() * (1 - 1 / len(of_blocks))
            assert shown["frechet_se"] == pytest.approx(error**0.5)
            assert (tags["method"], tags["budget"]) == (name, str(k))
            assert tags["judge"] == "second_classifier"
            assert tags["solver"] == schedules[str(k)][tags["steps"]]["solver"]
            assert tags["samples"] == run.data.params["samples"] == str(of_budget["samples"])
            assert float(run.data.params["nfe"]) == shown["nfe"]
            assert tags["mlflow.parentRunId"] == parent.info.run_id
            assert tags["pipeline"] == parent.info.run_name
            assert shown["samples"] == 70
            assert shown["reference_samples"] == 100
            assert len({key for key in shown if "/" not in key}) == 8
            assert shown["seconds"] > 0
            assert ("training/loss" in shown) == (name in STUDENTS)
            ranks.append(tags["rank"])
        assert ranks.count("best") == 1 or ranks.count("level") > 1
    assert found["boss K=3"].data.metrics["nfe"] == 3
    assert found["boss K=3"].data.tags["solver"] == "euler"
    client = mlflow.MlflowClient(f"sqlite:///{finished.folder / 'mlflow.db'}")
    curve = pd.read_csv(finished.folder / "results" / "curves" / "3.csv")
    run_id = found["boss K=3"].info.run_id
    for name in ("loss", "validation_loss"):
        history = client.get_metric_history(run_id, f"training/{name}")
        assert [(m.step, m.value) for m in history] == list(
            zip(curve["step"], curve[f"boss_{name}"], strict=True)
        )
    # At step = K, so that runs grouped by method draw a curve against it.
    (distance,) = client.get_metric_history(run_id, "frechet")
    assert (distance.step, distance.value) == (3, found["boss K=3"].data.metrics["frechet"])


def test_the_teacher_has_a_run_of_its_own(finished: Project) -> None:
    (run,) = [run for run in runs(finished) if run.data.tags.get("method") == "teacher"]
    assert run.info.run_name == "teacher K=12"
    assert run.data.tags["rank"] == "reference"
    floor = record(finished, "teacher")
    shown = run.data.metrics
    assert (shown["nfe"], shown["samples"]) == (12, 70)
    assert shown["frechet"] == floor["fine"]["frechet_second_classifier"]
    assert shown["frechet_se"] == pytest.approx(floor["fine"]["frechet_second_classifier_se"])
    assert shown["seconds"] == read_usage("floor", finished.folder)["fine"]["seconds"]
    client = mlflow.MlflowClient(f"sqlite:///{finished.folder / 'mlflow.db'}")
    curve = pd.read_csv(finished.folder / "results" / "curves" / "teacher.csv")
    history = client.get_metric_history(run.info.run_id, "training/loss")
    assert [m.value for m in history] == list(curve["loss"])


def test_runs_say_when_the_work_was_done_and_who_called_it(
    finished: Project, tmp_path: Path
) -> None:
    """Also those that are logged later."""
    project = finished.copy(tmp_path / "project")
    (project.folder / "mlflow.db").unlink()
    (project.folder / "results/usage/evaluate-1.json").unlink()  # as of a stage that was restored
    before = 1000 * time.time()
    project.run("boss", "track", "--rebuild")
    # The results were committed after it.
    first_commit = project.run("git", "rev-list", "--max-parents=0", "HEAD").stdout.strip()
    for shown in (finished, project):
        found = {run.info.run_name: run for run in runs(shown)}
        for name in ("boss K=3", "K=3", "teacher K=12"):
            info, tags = found[name].info, found[name].data.tags
            assert tags["mlflow.source.name"] == "boss repro"
            assert tags["mlflow.source.type"] == "LOCAL"
            assert info.end_time < before
            assert tags["mlflow.source.git.commit"] == tags["git_commit"] == first_commit
        usage = read_usage("evaluate-3", shown.folder)["boss"]
        info = found["boss K=3"].info
        assert info.start_time == int(1000 * usage["began"])
        assert info.end_time - info.start_time == pytest.approx(1000 * usage["seconds"], abs=2)
        # The budget's from the first of its trainings to when its record was written.
        trained = read_usage("finetune-3", shown.folder)
        assert found["K=3"].info.start_time == int(
            1000 * min(each["began"] for each in trained.values())
        )
        assert found["K=3"].info.end_time == int(1000 * usage["stored"])
    # What was not measured here has no times but those of the logging, which is what it names.
    restored = {run.info.run_name: run for run in runs(project)}["boss K=1"]
    assert restored.data.tags["mlflow.source.name"] == "boss track --rebuild"
    assert restored.info.start_time >= before
    assert "seconds" not in restored.data.metrics
    first = {run.info.run_name: run for run in runs(finished)}
    (parent,) = [run for run in first.values() if "boss.pipeline" in run.data.tags]
    assert parent.info.start_time == int(1000 * usage["since"])
    assert parent.info.end_time == max(first[f"K={k}"].info.end_time for k in (1, 3))


@pytest.mark.slow
@pytest.mark.long
def test_a_stage_that_dvc_was_asked_for_names_dvc(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    (project.folder / "mlflow.db").unlink()
    project.run("dvc", "repro", "--force", "--single-item", "evaluate@3")
    found = {run.info.run_name: run for run in runs(project)}
    assert found["K=3"].data.tags["mlflow.source.name"] == "dvc repro"
    began = [r["began"] for r in read_usage("evaluate-3", project.folder).values()]
    assert found["K=3"].info.start_time == int(1000 * min(began))  # the training was before it


def test_tracking_twice_changes_nothing_and_a_lost_database_loses_nothing(
    finished: Project, tmp_path: Path
) -> None:
    project = finished.copy(tmp_path / "project")
    before = {run.info.run_id for run in runs(project)}
    boss(project, "track")
    assert {run.info.run_id for run in runs(project)} == before
    (project.folder / "mlflow.db").unlink()
    shutil.rmtree(project.folder / "mlruns")
    boss(project, "track", "--rebuild")
    first = {run.info.run_id for run in runs(project)}
    shown = boss(project, "track", "--rebuild").stdout
    assert shown == "K=1: in MLflow\nK=3: in MLflow\n"
    assert {run.info.run_id for run in runs(project)} == first
    again = {run.info.run_name: run.data.metrics for run in runs(project)}
    assert again == {run.info.run_name: run.data.metrics for run in runs(finished)}


def test_a_server_that_is_down_is_a_warning(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    project.set({"tracking.uri": "http://boss:geheim@127.0.0.1:9"})
    done = project.run("boss", "track")
    assert "warning: MLflow at http://boss:***@127.0.0.1:9: " in done.stderr
    assert "geheim" not in done.stderr
    assert "Traceback" not in done.stderr
    assert "`boss track` logs them later" in done.stderr
    done = project.run("boss", "track", "--rebuild", code=2)
    assert done.stderr.startswith("error: MLflow at http://boss:***@127.0.0.1:9")


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://u:geheim@127.0.0.1:9/db",
        "postgresql+psycopg://u:geheim@127.0.0.1:9/db",
        "mysql://u:geheim@127.0.0.1:9/db",
        "nonsense://somewhere",
        "sqlite:////proc/nowhere/mlflow.db",
    ],
)
def test_an_address_that_mlflow_cannot_open_is_a_warning(
    finished: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, uri: str
) -> None:
    project = finished.copy(tmp_path / "project")
    project.set({"tracking.uri": uri})
    monkeypatch.chdir(project.folder)
    with pytest.raises(InputError) as refused:
        track_budget(load_params(), 3)
    (line,) = str(refused.value).splitlines()
    assert line.startswith((f"MLflow at {without_password(uri)}: ", "/proc/nowhere"))
    assert "geheim" not in line


@pytest.mark.slow
def test_stages_end_well_where_mlflow_cannot_be_opened(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    project.set({"tracking.uri": "mysql://u:p@127.0.0.1:9/db"})
    done = project.run("dvc", "repro", "--force", "--single-item", "evaluate@3")
    assert "warning: MLflow at mysql://u:***@127.0.0.1:9/db: " in done.stdout + done.stderr


def test_a_note_cut_short_is_written_anew(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    for path in (".dvc/tmp/mlflow-runs.json", "results/usage/cost.json"):
        (project.folder / path).write_text('{"K')
    assert boss(project, "track").stdout == "K=1: in MLflow\nK=3: in MLflow\n"
    assert len(json.loads((project.folder / ".dvc/tmp/mlflow-runs.json").read_text())) == 2
    boss(project, "usage")
    (project.folder / "metrics/3.json").write_text('{"nfe')
    done = boss(project, "table", code=2)
    assert done.stderr.startswith("error: metrics/3.json: truncated or not JSON (")


def test_mlflow_ends_with_boss_ui(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    for how in (signal.SIGTERM, signal.SIGKILL):
        port = free_port()
        ui = project.start("boss", "ui", "--port", str(port))
        wait_for(f"http://127.0.0.1:{port}/health", ui, project.folder / "dvc.yaml")
        ui.send_signal(how)
        end = time.monotonic() + 30
        while running_in(project.folder):
            assert time.monotonic() < end
            time.sleep(0.2)
        ui.communicate()


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("metrics/teacher.json", {}, "without nfe, samples, reference_samples, fine"),
        ("metrics/teacher.json", {"nfe": "12"}, "nfe: '12'; a number needed"),
        ("metrics/3.json", {}, "without nfe, samples, reference_samples, a method"),
        ("samples/3/made_of.json", {}, "without teacher_hash, extractor_hash, extractor, student"),
        ("samples/teacher/made_of.json", {}, "without teacher_hash, extractor_hash, extractor;"),
        ("metrics/3.json", {"nfe": 4}, "nfe: 4; 3 needed"),
        ("metrics/3.json", {"boss": {"fid": "low"}}, "boss: {'fid': 'low'}; numbers by name"),
        ("data/card.json", {}, "source: None; a name needed"),
        ("results/schedules.json", {"3": {}}, "no uniform of budget 3"),
        ("results/curves/3.csv", "", "no training's curve"),
        ("results/curves/3.csv", "a,b\n1,2\n", "no training's curve"),
        ("samples/3/replicates.json", {"boss": {}}, "not the replicates of frechet_second_class"),
    ],
)
def test_mlflow_is_not_blamed_for_a_record_that_is_not_whole(
    finished: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, change: Any,
    says: str,
) -> None:  # fmt: skip
    project = finished.copy(tmp_path / "project")
    monkeypatch.chdir(project.folder)
    path = Path(name)
    text = change if isinstance(change, str) else ""
    if isinstance(change, dict):
        text = json.dumps(json.loads(path.read_text()) | change if change else {})
    path.unlink()
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        track_budget(load_params(), 3)
    (line,) = str(refused.value).splitlines()
    assert line.startswith(f"{name}: {says}")
    assert "MLflow" not in line


# What fails in the database, in the order of a projection: the parent and its parameters, the run
# of the budget and all that it holds, its methods' runs with data, curves and models, that of the
# teacher, the parent's curves and description, the ends, and the mark of the whole.
CHILD = "(SELECT run_uuid FROM tags WHERE key = 'mlflow.parentRunId')"
LOST = (
    "INSERT ON runs",
    "INSERT ON params",
    "INSERT ON tags WHEN new.key = 'mlflow.parentRunId'",
    f"INSERT ON metrics WHEN new.run_uuid IN {CHILD}",
    f"INSERT ON params WHEN new.run_uuid IN {CHILD}",
    "INSERT ON tags WHEN new.key = 'teacher_hash' AND new.run_uuid IN " + CHILD,
    "INSERT ON tags WHEN new.key = 'boss.budget_run'",
    "INSERT ON metrics WHEN new.key = 'frechet'",
    "UPDATE ON logged_models",
    "INSERT ON tags WHEN new.key = 'boss.teacher_run'",
    "INSERT ON metrics WHEN new.key = 'frechet/boss'",
    "INSERT ON tags WHEN new.key = 'mlflow.note.content' AND new.run_uuid NOT IN " + CHILD,
    f"UPDATE ON runs WHEN new.status = 'FINISHED' AND new.run_uuid IN {CHILD}",
    f"UPDATE ON runs WHEN new.status = 'FINISHED' AND new.run_uuid NOT IN {CHILD}",
    "INSERT ON tags WHEN new.key = 'boss.record'",
)


def shown(client: mlflow.MlflowClient, experiment: str) -> list[Any]:
    """All that an experiment shows, but for times and identifiers."""
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    runs = client.search_runs([found.experiment_id])
    names = {run.info.run_id: run.info.run_name for run in runs}
    tags = [
        {k: names.get(v, v) for k, v in run.data.tags.items() if k != "boss.record"} for run in runs
    ]
    histories = [
        {
            key: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, key)]
            for key in run.data.metrics
        }
        for run in runs
    ]
    files = [{a.path for a in client.list_artifacts(run.info.run_id)} for run in runs]
    used = [
        (
            [each.dataset.digest for each in run.inputs.dataset_inputs],
            len(run.outputs.model_outputs),
        )
        for run in runs
    ]
    rows = zip(runs, tags, histories, files, used, strict=True)
    return sorted(
        (run.info.run_name, run.info.status, run.data.params, tag, history, sorted(file), *use)
        for run, tag, history, file, use in rows
    )


def test_a_projection_that_was_cut_short_is_made_whole(
    finished: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = finished.copy(tmp_path / "project")
    monkeypatch.chdir(project.folder)
    params = load_params()
    client = mlflow.MlflowClient(tracking_uri(params))
    card = project.folder / "data" / "card.json"

    def project_into(experiment: str) -> None:
        card.write_text(json.dumps(json.loads(card.read_text()) | {"source": experiment}))
        track_budget(params, 3)

    def change_database(command: str) -> None:
        with closing(sqlite3.connect("mlflow.db")) as database, database:
            database.execute(command)

    project_into("never cut")
    expected = shown(client, "never cut")
    # Of the budget, the parent, the teacher, and each method.
    assert [row[1] for row in expected] == ["FINISHED"] * (3 + len(VARIANTS))
    assert sum(row[-1] for row in expected) == len(STUDENTS)
    assert expected[0][0] == "K=3"
    for number, event in enumerate(LOST):
        change_database(
            f"CREATE TRIGGER lost BEFORE {event} BEGIN SELECT RAISE(ABORT, 'lost'); END"
        )
        with pytest.raises(InputError, match="`boss track` logs them later"):
            project_into(f"cut {number}")
        change_database("DROP TRIGGER lost")
        project_into(f"cut {number}")
        assert shown(client, f"cut {number}") == expected, event
        of = client.get_experiment_by_name(f"cut {number}").experiment_id
        assert len(client.search_logged_models([of])) == len(STUDENTS), event


def test_what_two_machines_logged_at_once_is_there_once(finished: Project, tmp_path: Path) -> None:
    """Neither saw what the other was making; whichever looks next sees both."""
    project = finished.copy(tmp_path / "project")
    client = mlflow.MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")
    expected = sorted(run.info.run_name for run in runs(project))
    hidden = [
        (run.info.run_id, tag, run.data.tags[tag])
        for run in runs(project)
        for tag in ("boss.record", "boss.pipeline")
        if tag in run.data.tags
    ]
    assert len(hidden) == 3  # two budgets and their parent
    for run, tag, _ in hidden:
        client.set_tag(run, tag, "of another")
    assert boss(project, "track").stdout.count("logged to MLflow") >= 2
    for run, tag, value in hidden:
        client.set_tag(run, tag, value)
    assert sorted(run.info.run_name for run in runs(project)) == sorted(2 * expected)
    ids = [run.info.run_id for run in runs(project) if "boss.pipeline" in run.data.tags]
    shown = boss(project, "track", "--rebuild").stdout
    assert shown.count("in MLflow") == 2
    left = runs(project)
    assert sorted(run.info.run_name for run in left) == expected
    assert {r.info.run_id for r in left if "mlflow.parentRunId" not in r.data.tags} == {min(ids)}
    below = {run.data.tags.get("mlflow.parentRunId", min(ids)) for run in left}
    assert below == {min(ids)}
    (experiment,) = {run.info.experiment_id for run in left}
    models = {model.source_run_id for model in client.search_logged_models([experiment])}
    assert models <= {run.info.run_id for run in left}


def test_what_another_machine_left_below_the_same_parent_goes(
    finished: Project, tmp_path: Path
) -> None:
    """It took a budget's run for one that was cut short, whose methods were being made; or both
    made the teacher's."""
    project = finished.copy(tmp_path / "project")
    client = mlflow.MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")
    before = {run.info.run_id: run for run in runs(project)}
    (budget,) = [run for run in before.values() if run.info.run_name == "K=1"]
    (teacher,) = [run for run in before.values() if run.data.tags.get("method") == "teacher"]
    lost = again(client, budget, {})
    names = [run.info.run_name for run in before.values() if run.info.run_name.endswith(" K=1")]
    for run in before.values():
        if run.info.run_name in names:
            again(client, run, {"boss.budget_run": lost})
    client.delete_run(lost)
    again(client, teacher, {})
    assert len(runs(project)) == len(before) + len(names) + 1
    assert boss(project, "track", "--rebuild").stdout.count("in MLflow") == 2
    left = {run.info.run_id for run in runs(project)} - before.keys()
    assert [client.get_run(run).data.tags["method"] for run in left] == ["teacher"]
    client.delete_tag(budget.info.run_id, "boss.record")  # so that it is logged again
    assert boss(project, "track", "--rebuild").stdout.count("logged to MLflow") == 1
    expected = Counter(run.info.run_name for run in before.values())
    assert Counter(run.info.run_name for run in runs(project)) == expected


def again(client: mlflow.MlflowClient, run: Run, tags: dict[str, str]) -> str:
    """Another run of the same name, below the same parent."""
    same = {key: value for key, value in run.data.tags.items() if key != "boss.record"}
    of = run.info.experiment_id
    return client.create_run(of, run_name=run.info.run_name, tags=same | tags).info.run_id


def test_a_database_of_an_earlier_version_is_logged_to(finished: Project, tmp_path: Path) -> None:
    """There a budget's run held every method's metrics, and its parent the same at step = NFE."""
    project = finished.copy(tmp_path / "project")
    before = {run.info.run_name: run for run in runs(finished)}
    (parent,) = [run for run in before.values() if "boss.pipeline" in run.data.tags]
    (project.folder / "mlflow.db").unlink()
    client = mlflow.MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")
    of = client.create_experiment("digits", (project.folder / "mlruns").as_uri())
    own = {key: value for key, value in parent.data.tags.items() if "report" not in key}
    old = client.create_run(of, run_name=parent.info.run_name, tags=own).info.run_id
    tags = {**before["K=3"].data.tags, "mlflow.parentRunId": old}
    child = client.create_run(of, run_name="K=3", tags=tags).info.run_id
    for run in (old, child):
        client.log_metric(run, "boss/frechet_classifier", 1.0, step=3)
        client.set_terminated(run)
    shown = boss(project, "track", "--rebuild").stdout
    assert shown.splitlines() == [
        "K=1: logged to MLflow", "K=3: in MLflow", "report: logged to MLflow",
    ]  # fmt: skip
    found = {run.info.run_name: run for run in runs(project)}
    assert found["K=3"].info.run_id == child
    assert found["boss K=1"].data.tags["mlflow.parentRunId"] == old
    assert "boss K=3" not in found
    # The same budget measured again: beside what is there.
    (project.folder / "metrics/3.json").write_text(
        (project.folder / "metrics/3.json").read_text() + "\n"
    )
    boss(project, "track", "--rebuild")
    parents = [run for run in runs(project) if "boss.pipeline" in run.data.tags]
    assert len(parents) == 2
    assert "boss K=3" in {run.info.run_name for run in runs(project)}

"""The Prefect flow on a real server: the same stages, the same cache, nothing trusted blindly."""

import json
import re
import subprocess
import threading
from datetime import timedelta
from pathlib import Path

import mlflow
import pandas as pd
import pytest

from tests.helpers.flow import run, states, tasks
from tests.helpers.in_process import boss
from tests.helpers.prefect_api import STAGES, VARIANTS, api, artifacts, flow_run
from tests.helpers.project import Project, running_in

pytestmark = pytest.mark.slow


def test_every_stage_is_a_task_named_after_it(flowed, prefect_server) -> None:
    _, shown = flowed
    assert flow_run(prefect_server, shown)["state_name"] == "Completed"
    assert states(prefect_server, shown) == dict.fromkeys(STAGES, "Ran")


def test_budgets_run_side_by_side_after_what_they_need(flowed, prefect_server) -> None:
    _, shown = flowed
    found = tasks(prefect_server, shown)
    span = {
        name: (pd.Timestamp(t["start_time"]), pd.Timestamp(t["end_time"]))
        for name, t in found.items()
    }
    first, second = span["finetune@1"], span["finetune@3"]
    assert max(first[0], second[0]) + timedelta(seconds=0.5) < min(first[1], second[1])
    assert span["trajectories"][1] <= min(first[0], second[0])
    assert all(span[f"finetune@{k}"][1] <= span[f"evaluate@{k}"][0] for k in (1, 3))
    together = max(
        sum(start <= moment < end for start, end in span.values()) for moment, _ in span.values()
    )
    assert together <= 2  # the worker limit


def test_each_task_has_a_log_of_its_own(flowed, prefect_server) -> None:
    _, shown = flowed
    found = tasks(prefect_server, shown)

    def log(name: str) -> str:
        body = {"logs": {"task_run_id": {"any_": [found[name]["id"]]}}}
        return "\n".join(entry["message"] for entry in api(prefect_server, "logs/filter", body))

    assert "> python -m flows.stages.finetune 3" in log("finetune@3")
    assert "finetune@3 straightened_uniform: 12 steps" in log("finetune@3")
    assert "finetune 1" not in log("finetune@3")
    assert "> python -m flows.stages.teacher" in log("teacher")


def test_the_flow_ends_with_a_table_and_links(flowed, prefect_server) -> None:
    project, shown = flowed
    run = flow_run(prefect_server, shown)
    found = {a["key"]: a for a in artifacts(prefect_server, run)}
    rows = json.loads(found["boss-results"]["data"])
    assert [row["NFE"] for row in rows] == [1, 3]
    record = json.loads((project.folder / "metrics" / "3.json").read_text())
    # By the judge that searched nothing, with its marks as `boss table` has them.
    values = [v for k, v in rows[1].items() if k not in ("NFE", "MLflow run")]
    distances = [float(v.rstrip("*=")) for v in values]
    by = "frechet_second_classifier"
    assert distances == pytest.approx([record[v][by] for v in VARIANTS], rel=1e-3)
    table = boss(project, "table").stdout.partition("lower is better")[2]
    of_3 = next(line for line in table.splitlines() if re.match(r"\W*3\b", line))
    assert [v[-1] for v in values if v[-1] in "*="] == re.findall(r"[*=]", of_3)
    description = found["boss-results"]["description"]
    assert "searched nothing and decides" in description
    assert re.search(
        r"K = 3: .* `boss sample --checkpoint \S+( --schedule \S+#3/\w+)?`", description
    )
    client = mlflow.MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")
    for row in rows:
        link = re.search(r"/#/experiments/(\w+)/runs/(\w+)\)", row["MLflow run"])
        assert link
        logged = client.get_run(link[2])
        assert logged.info.experiment_id == link[1]
        assert logged.data.params["nfe"] == str(row["NFE"])
        assert link[2] in found[f"boss-mlflow-{row['NFE']}"]["data"]


def test_after_the_flow_dvc_has_nothing_to_do(flowed, tmp_path: Path) -> None:
    project = flowed[0].copy(tmp_path / "project")
    assert "up to date" in project.run("dvc", "status").stdout
    assert "Running stage" not in project.run("dvc", "repro").stdout


def test_after_dvc_the_flow_runs_no_command(
    finished: Project, tmp_path: Path, prefect_server
) -> None:
    project = finished.copy(tmp_path / "project")
    shown = run(project, prefect_server)
    assert states(prefect_server, shown) == dict.fromkeys(STAGES, "Cached")
    assert "> python" not in shown
    assert project.outputs() == finished.outputs()


def test_the_flow_makes_what_boss_repro_makes(flowed, finished: Project) -> None:
    """To the last bit, whatever the threads: there with one for each stage, here with three."""
    assert flowed[0].outputs() == finished.outputs()
    locks = [(project.folder / "dvc.lock").read_bytes() for project in (flowed[0], finished)]
    assert locks[0] == locks[1]


def test_outputs_deleted_or_altered_are_never_trusted(
    flowed, tmp_path: Path, prefect_server
) -> None:
    project = flowed[0].copy(tmp_path / "project")
    (project.folder / "metrics" / "3.json").unlink()
    weights = project.folder / "models" / "student" / "1" / "boss" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    shown = run(project, prefect_server)
    expected = dict.fromkeys(STAGES, "Cached") | {
        "evaluate@3": "Restored",
        "finetune@1": "Restored",
    }
    assert states(prefect_server, shown) == expected
    assert project.outputs() == flowed[0].outputs()


def test_a_parameter_changed_and_changed_back(flowed, tmp_path: Path, prefect_server) -> None:
    project = flowed[0].copy(tmp_path / "project")
    project.set({"finetune.training.iterations": 13})
    shown = run(project, prefect_server, "--target", "finetune@3")
    found = states(prefect_server, shown)
    assert found.pop("check") == found.pop("finetune@3") == "Ran"
    assert set(found) == {"prepare", "features", "teacher", "cost", "schedule", "trajectories"}
    assert set(found.values()) == {"Cached"}
    project.set({"finetune.training.iterations": 12})
    shown = run(project, prefect_server)
    found = states(prefect_server, shown)
    assert found["finetune@3"] == "Restored"
    assert set(found.values()) == {"Cached", "Restored"}
    assert project.outputs() == flowed[0].outputs()


def test_a_stage_that_takes_too_long_is_ended(flowed, tmp_path: Path, prefect_server) -> None:
    project = flowed[0].copy(tmp_path / "project")
    project.set({"trajectories.samples": 50_000})
    project.run("dvc", "repro", "check")  # which on a busy machine takes as long
    shown = run(project, prefect_server, "--target", "trajectories", "--timeout", "4", code=2)
    assert "error: trajectories: ended after 4 s" in shown
    assert not running_in(project.folder)
    assert project.outputs() == flowed[0].outputs()


@pytest.mark.long
def test_a_busy_workspace_is_tried_again_and_a_bad_parameter_is_not(
    flowed, tmp_path: Path, prefect_server
) -> None:
    project = flowed[0].copy(tmp_path / "project")
    project.set({"finetune.training.iterations": 13})
    holder = subprocess.Popen(["sleep", "600"])
    threading.Thread(target=holder.wait, daemon=True).start()  # or it would stay as a zombie
    lock = project.folder / ".dvc" / "tmp" / "rwlock"
    path = str(project.folder / "models" / "student" / "3")
    lock.write_text(json.dumps({"write": {path: {"pid": holder.pid, "cmd": "sleep"}}}))
    flow = project.start("boss", "run", "--target", "finetune@3", env=prefect_server)
    assert flow.stdout is not None
    lines = []
    for line in flow.stdout:  # the holder goes as soon as it was seen, however slow the machine is
        lines.append(line)
        if "is at work in" in line:
            holder.kill()
    shown = "".join(lines)
    holder.kill()
    assert flow.wait() == 0, shown
    assert "another process, such as `dvc repro`, is at work in" in shown
    found = tasks(prefect_server, shown)["finetune@3"]
    assert found["state_name"] == "Ran"
    assert found["run_count"] > 1

    project.set_command("finetune", lambda _: "python -c 'raise OSError'")
    # Its traceback is the stage's own, a mistake in code, and stands in the task's log.
    done = project.run("boss", "run", "--target", "finetune@3", code=2, env=prefect_server)
    shown = done.stdout + done.stderr
    assert tasks(prefect_server, shown)["finetune@3"]["run_count"] == 1

"""The Prefect flow on a real server: the same stages, the same cache, nothing trusted blindly."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import yaml

from flows.orchestration.gpus import gpu_lock
from tests.helpers.prefect_api import STAGES, VARIANTS, api, artifacts, flow_run
from tests.helpers.project import Project, running_in
from tests.helpers.servers import free_port
from tests.helpers.servers import prefect_server as own_server

pytestmark = pytest.mark.slow


def tasks(server: dict[str, str], shown: str) -> dict[str, dict[str, Any]]:
    """The task runs of the flow run whose log is ``shown``, by name."""
    flow = flow_run(server, shown)
    body = {"flow_runs": {"id": {"any_": [flow["id"]]}}}
    end = time.monotonic() + 20
    while True:  # the server takes in the last events a moment after the run
        found = api(server, "task_runs/filter", body)
        if all(t["state_type"] in ("COMPLETED", "FAILED", "CRASHED") for t in found):
            return {task["name"]: task for task in found}
        assert time.monotonic() < end, found
        time.sleep(0.5)


def states(server: dict[str, str], shown: str) -> dict[str, str]:
    found = tasks(server, shown)
    return {name: task["state_name"] for name, task in found.items() if name in STAGES}


def run(project: Project, server: dict[str, str], *arguments: str, code: int = 0) -> str:
    done = project.run("boss", "run", *arguments, code=code, env=server)
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout + done.stderr


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
    values = [v for k, v in rows[1].items() if k not in ("NFE", "MLflow run")]
    assert values == pytest.approx([record[v]["frechet_classifier"] for v in VARIANTS], rel=1e-3)
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


def wait_for_line(process: "subprocess.Popen[str]", text: str) -> None:
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if text in line:
            return
    raise AssertionError(f"{text!r} not in\n{''.join(seen)}")


def wait_until_ended(folder: Path, seconds: float = 15) -> None:
    """Until no process works in the folder; fails where one goes on."""
    end = time.monotonic() + seconds
    while found := running_in(folder):
        assert time.monotonic() < end, found
        time.sleep(0.2)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_flow_ended_half_way_loses_no_finished_stage(
    flowed, tmp_path: Path, prefect_server, how: signal.Signals
) -> None:
    project = flowed[0].copy(tmp_path / "project")
    project.set({"cost.samples": 25, "trajectories.samples": 20_000})
    process = project.start("boss", "run", env=prefect_server)
    wait_for_line(process, "> python -m flows.stages.trajectories")
    if how == signal.SIGKILL:  # of all that the shell knows of, the flow and what is in its group
        os.killpg(process.pid, how)
    else:
        process.send_signal(how)
    process.communicate(timeout=300)
    wait_until_ended(project.folder)
    if how == signal.SIGINT:
        assert (project.folder / "trajectories" / "states.npy").exists()  # of the last good run
    project.set({"trajectories.samples": 60})
    shown = run(project, prefect_server, "--target", "schedule")
    found = states(prefect_server, shown)
    assert found["cost"] == "Cached"
    assert found["schedule"] == "Cached"


def test_a_killed_run_in_a_copy_leaves_nothing_running(
    flowed, tmp_path: Path, prefect_server
) -> None:
    project = flowed[0].copy(tmp_path / "project")
    change = ("--set", "trajectories.samples=20_000", "--target", "trajectories", "--name", "kept")
    process = project.start("boss", "run", *change, env=prefect_server)
    wait_for_line(process, "> python -m flows.stages.trajectories")
    copy = project.folder / ".dvc" / "tmp" / "boss-copies" / "kept"
    assert running_in(copy)
    process.kill()  # it alone
    process.communicate(timeout=60)
    wait_until_ended(copy)
    wait_until_ended(project.folder)


def test_two_experiments_at_the_same_time_leave_the_workspace_alone(
    flowed, tmp_path: Path, prefect_server
) -> None:
    project = flowed[0].copy(tmp_path / "project")
    before = project.outputs()
    params = (project.folder / "params.yaml").read_bytes()
    abandoned = project.folder / ".dvc" / "tmp" / "boss-copies" / "killed" / "models"
    abandoned.mkdir(parents=True)  # by a run that was killed
    first = project.start(
        "boss", "run", "--set", "budgets=[3,2]", "--name", "two", env=prefect_server
    )
    run(project, prefect_server, "--set", "finetune.training.iterations=14", "--name", "longer")
    output, _ = first.communicate(timeout=300)
    assert first.returncode == 0, output
    assert project.outputs() == before
    assert (project.folder / "params.yaml").read_bytes() == params
    assert project.run("git", "status", "--short").stdout == ""
    assert "up to date" in project.run("dvc", "status").stdout
    assert not abandoned.parent.exists()

    listed = pd.read_csv(
        pd.io.common.StringIO(project.run("dvc", "exp", "show", "--csv").stdout)
    ).set_index("Experiment")
    assert listed.loc["longer", "finetune.training.iterations"] == 14
    assert yaml.safe_load(listed.loc["two", "budgets"]) == [3, 2]
    assert listed.loc["two", "metrics/2.json:nfe"] == 2
    # What did not change came from the shared cache.
    assert "> python -m flows.stages.teacher" not in output
    # Their runs are in the workspace's database, under a parent of their own.
    client = mlflow.MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("digits")
    runs = client.search_runs([experiment.experiment_id])
    names = {
        (r.data.tags.get("dvc_experiment"), r.info.run_name)
        for r in runs
        if "mlflow.parentRunId" in r.data.tags
    }
    assert {("longer", "K=1"), ("longer", "K=3"), ("two", "K=2")} <= names
    # And an experiment can be brought back, metrics and models included.
    project.run("dvc", "exp", "apply", "longer")
    assert "up to date" in project.run("dvc", "status").stdout


def test_an_experiment_of_some_stages_says_nothing_of_the_others(
    flowed, tmp_path: Path, prefect_server
) -> None:
    project = flowed[0].copy(tmp_path / "project")
    change = ("--set", "evaluate.samples=44", "--set", "evaluate.kid_subset_size=40")
    run(project, prefect_server, *change, "--target", "features", "--name", "some")
    listed = pd.read_csv(
        pd.io.common.StringIO(project.run("dvc", "exp", "show", "--csv").stdout)
    ).set_index("Experiment")
    assert listed.loc["some", "evaluate.samples"] == 44
    assert listed.loc["some", "metrics/3.json:nfe"] == "!"  # what DVC shows where there is none
    # Nothing was recorded for the changed parameters that was not made with them.
    project.set({"evaluate.samples": 44, "evaluate.kid_subset_size": 40})
    shown = run(project, prefect_server)
    found = states(prefect_server, shown)
    assert found["features"] == "Restored"
    assert found["evaluate@3"] == found["floor"] == "Ran"
    record = json.loads((project.folder / "metrics" / "3.json").read_text())
    assert record["samples"] == 44


def test_changed_parameters_count_for_targets_and_for_what_was_wrong_before(
    flowed, tmp_path: Path, prefect_server
) -> None:
    project = flowed[0].copy(tmp_path / "project")
    project.set({"budgets": [0]})
    change = ("--set", "budgets=[2]", "--set", "tracking.uri=sqlite:///other.db")
    shown = run(project, prefect_server, *change, "--target", "evaluate@2", "--name", "right")
    assert tasks(prefect_server, shown)["evaluate@2"]["state_name"] == "Ran"
    assert "right" in project.run("dvc", "exp", "list", "--name-only").stdout.split()
    # A relative address is one in the user's folder, for the stage and for the links.
    client = mlflow.MlflowClient(f"sqlite:///{project.folder / 'other.db'}")
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    (logged,) = client.search_runs([experiment.experiment_id], "params.nfe = '2'")
    ended = artifacts(prefect_server, flow_run(prefect_server, shown))
    (link,) = [a["data"] for a in ended if a["key"] == "boss-mlflow-2"]
    assert logged.info.run_id in link
    # And a target that they take away is refused.
    change = ("--set", "budgets=[2]", "--target", "finetune@3")
    assert "error: target: 'finetune@3'; a stage needed" in run(
        project, prefect_server, *change, code=2
    )


@pytest.mark.parametrize("name", ["/elsewhere", "..", "a/b", "a b", "-x", "x.lock"])
def test_a_name_that_is_no_name_is_refused(
    flowed, tmp_path: Path, prefect_server, name: str
) -> None:
    project = flowed[0].copy(tmp_path / "project")
    shown = run(project, prefect_server, "--set", "seed=1", f"--name={name}", code=2)
    assert f"error: --name: {name!r}; letters" in shown


def test_a_stage_sees_one_gpu_or_its_threads(flowed, tmp_path: Path, prefect_server) -> None:
    project = flowed[0].copy(tmp_path / "project")
    path = project.folder / "dvc.yaml"
    told = "cmd: echo sees gpu=$CUDA_VISIBLE_DEVICES threads=$OMP_NUM_THREADS; sleep 3; python"
    text = path.read_text()
    for stage in ("cost", "floor", "finetune"):
        text = text.replace(
            f"cmd: python -m flows.stages.{stage}", f"{told} -m flows.stages.{stage}"
        )
    path.write_text(text)
    cores = len(os.sched_getaffinity(0))
    shown = run(project, prefect_server, "--target", "finetune", "--target", "floor")
    seen = re.findall(r"(\w+)[@\d]* - sees gpu= threads=(\d+)", shown.replace("'", ""))
    whole, share = str(cores), str(max(1, cores // 2))  # cost and floor have nothing beside them
    assert sorted(seen) == [
        ("cost", whole),
        ("finetune", share),
        ("finetune", share),
        ("floor", whole),
    ]
    start = {
        stage: started(shown, f"{stage}.* - sees gpu") for stage in ("cost", "floor", "finetune")
    }
    first, second = start["finetune"]
    assert abs(second - first) < timedelta(seconds=3)  # side by side
    for alone, others in (
        (start["cost"][0], start["floor"]),
        (start["floor"][0], start["finetune"]),
    ):
        assert all(abs(other - alone) > timedelta(seconds=3) for other in others)

    project.set({"finetune.training.iterations": 13})
    shown = run(project, prefect_server | {"CUDA_VISIBLE_DEVICES": "4,7"}, "--target", "finetune")
    assert {m[1] for m in re.finditer(r"sees gpu=(\d*) threads", shown)} == {"4", "7"}
    assert gpu_limits(prefect_server) == {"4-7": 2}

    project.set({"finetune.training.iterations": 15})
    one = prefect_server | {"CUDA_VISIBLE_DEVICES": "4"}
    shown = run(project, one, "--target", "finetune")
    assert [m[1] for m in re.finditer(r"sees gpu=(\d*) threads", shown)] == ["4", "4"]
    first, second = started(shown, "- sees gpu")
    assert abs(second - first) > timedelta(seconds=3)  # one after the other
    # A flow that is shown fewer of them leaves the limit of the others alone.
    assert gpu_limits(prefect_server) == {"4-7": 2, "4": 1}

    # Two processes have a GPU each: no other stage runs beside theirs.
    project.set({"compute.processes": 2})
    shown = run(project, prefect_server | {"CUDA_VISIBLE_DEVICES": "4,7"}, "--target", "finetune")
    seen = [m[1] for m in re.finditer(r"finetune.* sees gpu=([\d,]*) threads", shown)]
    assert seen == ["4,7", "4,7"]
    first, second = started(shown, "- sees gpu=4,7")
    assert abs(second - first) > timedelta(seconds=3)


def started(shown: str, pattern: str) -> list[pd.Timestamp]:
    """When the lines of a flow's log were written that a pattern is found in."""
    found = [line[:12] for line in shown.splitlines() if re.search(pattern, line)]
    return [pd.Timestamp(f"2000-01-01 {time}") for time in found]


def gpu_limits(server: dict[str, str]) -> dict[str, int]:
    """The concurrency limits of this machine's GPUs, by the GPUs."""
    start = f"boss-gpu-{socket.gethostname()}-"
    found = api(server, "v2/concurrency_limits/filter", {})
    return {x["name"].removeprefix(start): x["limit"] for x in found if x["name"].startswith(start)}


def test_a_gpu_that_a_flow_of_another_server_holds_is_waited_for(
    flowed, tmp_path: Path, prefect_server
) -> None:
    project = flowed[0].copy(tmp_path / "project")
    project.set({"finetune.training.iterations": 13})
    server = prefect_server | {"CUDA_VISIBLE_DEVICES": "9"}
    with gpu_lock("9"):
        stopped = project.start("boss", "run", "--target", "finetune@3", env=server)
        wait_for_line(stopped, "waiting for a GPU: 9 in use by other stages")
        stopped.terminate()
        stopped.communicate(timeout=60)
        waits = project.start("boss", "run", "--target", "finetune@3", env=server)
        wait_for_line(waits, "waiting for a GPU: 9 in use by other stages")
    rest, _ = waits.communicate(timeout=300)
    assert waits.returncode == 0, rest
    assert "> python -m flows.stages.finetune 3" in rest


def test_a_stage_that_takes_too_long_is_ended(flowed, tmp_path: Path, prefect_server) -> None:
    project = flowed[0].copy(tmp_path / "project")
    project.set({"trajectories.samples": 50_000})
    shown = run(project, prefect_server, "--target", "trajectories", "--timeout", "4", code=2)
    assert "error: trajectories: ended after 4 s" in shown
    assert not running_in(project.folder)
    assert project.outputs() == flowed[0].outputs()


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

    code = project.folder / "flows" / "stages" / "finetune.py"
    code.write_text(code.read_text().replace("    on = device(params)\n", "    raise OSError\n", 1))
    # Its traceback is the stage's own, a mistake in code, and stands in the task's log.
    done = project.run("boss", "run", "--target", "finetune@3", code=2, env=prefect_server)
    shown = done.stdout + done.stderr
    assert tasks(prefect_server, shown)["finetune@3"]["run_count"] == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--target", "finetun"], "target: 'finetun'; a stage needed, one of check, prepare"),
        (["--set", "finetune.iteratoins=3"], "finetune.iteratoins: no such parameter; known here:"),
        (["--set", "budgets=[0]"], "--set: budgets.0: 0 found; input should be greater"),
        (["--set", "budgets"], "--set: 'budgets'; NAME=VALUE needed"),
        (["--set", "budgets=[13]"], "--set: budgets: 13 is above cost.grid (12)"),
        (["--name", "mine"], "--name: 'mine' without --set;"),
        (["--set", "budgets=[4"], "--set: budgets: '[4'; a value as YAML has it needed"),
        (["--set", "budgets=${x}"], "--set: budgets: '${x}'; a value as YAML has it needed"),
        (["--set", "data.path=/none"], "--set: data.path: /none: no such file or folder;"),
    ],
)  # fmt: skip
def test_bad_input(flowed, tmp_path: Path, prefect_server, arguments, says) -> None:
    project = flowed[0].copy(tmp_path / "project")
    done = project.run("boss", "run", *arguments, code=2, env=prefect_server)
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == [
        line for line in done.stderr.splitlines() if says in line
    ]
    assert says in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert project.outputs() == flowed[0].outputs()


def test_a_second_full_run_in_the_same_workspace(flowed, tmp_path: Path, prefect_server) -> None:
    project = flowed[0].copy(tmp_path / "project")
    project.set({"trajectories.samples": 20_000})
    first = project.start("boss", "run", env=prefect_server)
    wait_for_line(first, "> python -m flows.stages.trajectories")
    shown = run(project, prefect_server, code=2)
    assert "error: " in shown
    assert "another run is at work in this folder; wait for it, or give --set" in shown
    first.terminate()
    first.communicate(timeout=300)


def test_a_server_that_is_lost_half_way_costs_no_finished_stage(flowed, tmp_path: Path) -> None:
    project = flowed[0].copy(tmp_path / "project")
    project.set({"cost.samples": 25, "trajectories.samples": 5_000})
    with own_server(tmp_path) as server:
        lost = server | {"PREFECT_CLIENT_MAX_RETRIES": "1"}
        process = project.start("boss", "run", env=lost)
        wait_for_line(process, "> python -m flows.stages.trajectories")
    shown, _ = process.communicate(timeout=300)
    assert process.returncode == 2, shown
    assert "error: Prefect's server was lost; every finished stage is kept, run again" in shown
    assert "cost" not in project.run("dvc", "status").stdout


def test_a_server_that_freezes_holds_no_run(flowed, tmp_path: Path) -> None:
    project = flowed[0].copy(tmp_path / "project")
    served = tmp_path / "server"
    served.mkdir()
    command = (
        "import sys; from flows.cli import app as cli; from flows.orchestration import launch;"
        " launch.LOST = 5.0;"
        " sys.argv = ['boss', 'run', '--target', 'prepare']; cli.main()"
    )
    lost = "error: Prefect's server was lost; every finished stage is kept, run again"
    over = "warning: Prefect's server may lack the end of this run, which is over"
    with own_server(served) as server:
        why = f"({server['PREFECT_API_URL']}: no answer for 5 s)"
        for when, code, says in (("Beginning flow run", 2, lost), ("Completed('", 0, over)):
            process = project.start(sys.executable, "-c", command, env=server)
            wait_for_line(process, when)
            frozen = running_in(served)
            for pid in frozen:
                os.kill(pid, signal.SIGSTOP)
            try:
                shown, _ = process.communicate(timeout=60)
            finally:
                for pid in frozen:
                    os.kill(pid, signal.SIGCONT)
            assert process.returncode == code, shown
            found = [line for line in shown.splitlines() if line.startswith(("error", "warning"))]
            assert found == [f"{says} {why}"]


def test_servers_that_are_down_do_not_stop_the_work(flowed, tmp_path: Path) -> None:
    project = flowed[0].copy(tmp_path / "project")
    address = f"127.0.0.1:{free_port()}"
    project.set({"tracking.uri": f"http://boss:geheim@{address}", "evaluate.samples": 71})
    done = project.run(
        "boss", "run", "--target", "evaluate@3",
        env={"PREFECT_API_URL": f"http://127.0.0.1:{free_port()}/api"},
    )  # fmt: skip
    assert "does not answer; the run goes on with a server of its own" in done.stderr
    shown = done.stdout + done.stderr
    assert "Traceback" not in shown
    assert "encountered an exception TrackingLostError" not in done.stderr.splitlines()[-1]
    assert "the records are safe in metrics/" in shown
    assert f"MLflow at http://boss:***@{address}: " in shown
    assert "geheim" not in shown
    for database in Path(os.environ["PREFECT_HOME"]).glob("prefect.db*"):
        assert b"geheim" not in database.read_bytes()
    assert json.loads((project.folder / "metrics" / "3.json").read_text())["samples"] == 71
    # Later, with a database that answers, the record is projected.
    project.set({"tracking.uri": None})
    project.run("boss", "track")
    client = mlflow.MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("digits")
    logged = client.search_runs([experiment.experiment_id], "params.nfe = '3'")
    assert {run.data.metrics["samples"] for run in logged} == {70, 71}

"""Stages on the machines of a Dask cluster that share no folder with the caller, nor with each
other: a real scheduler and real workers, each in a mount namespace of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.helpers.clusters import (
    BROUGHT,
    Cluster,
    Place,
    asleep,
    dask_cluster,
    descendants,
    end,
    give_remote,
    needs_namespaces,
    place,
    plain,
    start,
    until,
)
from tests.helpers.flow import run, states, tasks
from tests.helpers.mlflow_runs import runs
from tests.helpers.project import Project

pytestmark = [pytest.mark.slow, needs_namespaces]


def as_deployed(project: Project, server: dict[str, str], **parameters: object) -> str:
    """The flow as a worker of Prefect's runs that of a deployment: from its file, as prefect.yaml
    names it, in a module that no other machine has under its name."""
    entrypoint = yaml.safe_load((project.folder / "prefect.yaml").read_text())
    entrypoint = entrypoint["definitions"]["flow"]["entrypoint"]
    code = (
        "from prefect.flows import load_flow_from_entrypoint as load\n"
        f"state = load({entrypoint!r})(**{parameters!r}, return_state=True)\n"
        "assert state.is_completed(), state"
    )
    done = project.run(sys.executable, "-c", code, env=server)
    return done.stdout + done.stderr


def works_on(cluster: Cluster, stage: str) -> "subprocess.Popen[bytes] | None":
    """The worker that runs the command of a stage."""
    for worker in cluster.workers:
        for pid in descendants(worker.pid):
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if f"flows.stages.{stage}".encode() in command:
                return worker
    return None


@pytest.mark.long
def test_one_worker_killed_and_one_slow_it_ends_as_on_one_machine(
    finished: Project, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, prefect_server
) -> None:
    project = Project.create(tmp_path / "project")
    with (
        place(tmp_path_factory.getbasetemp()) as at,
        dask_cluster(at, tmp_path, 3) as cluster,
    ):
        give_remote(project, at)
        log = tmp_path / "log"
        process = start(project, prefect_server, log, "--runner", cluster.address, "--workers", "3")
        killed = until(lambda: works_on(cluster, "teacher"), 600, process)
        end(killed)
        slow = until(lambda: works_on(cluster, "cost"), 600, process)
        for pid in (stopped := [slow.pid, *descendants(slow.pid)]):
            os.kill(pid, signal.SIGSTOP)
        time.sleep(20)
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        assert process.wait(1200) == 0, log.read_text()
        shown = log.read_text()
        assert "Traceback" not in shown
        assert list(at.workers.iterdir()) == []  # here is nothing of theirs
        again = run(project, prefect_server, "--runner", cluster.address)
    assert project.outputs() == finished.outputs()
    locks = [(each.folder / "dvc.lock").read_bytes() for each in (project, finished)]
    assert locks[0] == locks[1]
    assert "up to date" in project.run("dvc", "status").stdout
    assert "Running stage" not in project.run("boss", "repro").stdout
    assert set(states(prefect_server, again).values()) == {"Cached"}
    found = tasks(prefect_server, shown)
    assert {name for name, task in found.items() if task["state_name"] == "Ran"} >= {"teacher"}
    names = [sorted(run.info.run_name for run in runs(each)) for each in (project, finished)]
    assert names[0] == names[1]
    used = [
        {p.name for p in (each.folder / "results/usage").iterdir()} for each in (project, finished)
    ]
    assert used[0] == used[1]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Place, Cluster]]:
    """A cluster of two workers, for tests that leave it as it is."""
    folder = tmp_path_factory.mktemp("pair")
    with place(tmp_path_factory.getbasetemp()) as at, dask_cluster(at, folder, 2) as cluster:
        yield at, cluster


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, pair: tuple[Place, Cluster]) -> Project:
    """A project of plain stages that has not run; each test works in a copy of it."""
    project = Project.create(tmp_path_factory.mktemp("small") / "project", {"data.path": BROUGHT})
    brought = project.folder / BROUGHT
    brought.mkdir()
    (brought / "1.txt").write_text("brought along\n")
    project.run("dvc", "add", "--quiet", BROUGHT)
    plain(project)
    give_remote(project, pair[0])
    return project


@pytest.mark.long
def test_ctrl_c_ends_what_runs_there_and_the_next_run_goes_on(
    small: Project, pair: tuple[Place, Cluster], tmp_path: Path, prefect_server
) -> None:
    project, cluster = small.copy(tmp_path / "project"), pair[1]
    plain(project, teacher="sleep 777")
    options = ["--runner", cluster.address, "--target", "cost"]
    log = tmp_path / "log"
    process = start(project, prefect_server, log, *options)
    until(lambda: asleep(cluster, 777), 400, process)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(90) != 0
    late = time.monotonic() + 30
    while asleep(cluster, 777):
        assert time.monotonic() < late, "goes on behind its back"
        time.sleep(0.5)
    plain(project)
    found = states(prefect_server, run(project, prefect_server, *options))
    assert found == {"check": "Cached", "prepare": "Restored", "teacher": "Ran", "cost": "Ran"}
    assert (project.folder / "results" / "cost.npz").read_text() == "cost\n"
    assert (project.folder / "data" / "file").read_text() == "prepare\nbrought along\n"


def test_what_fails_there_fails_as_here_and_what_is_done_is_kept(
    small: Project, pair: tuple[Place, Cluster], tmp_path: Path, prefect_server
) -> None:
    project, cluster = small.copy(tmp_path / "project"), pair[1]
    fails = "echo 'error: cost.samples: 3; more needed' >&2; exit 2"
    plain(project, cost=fails, schedule="sleep 60")
    there = run(project, prefect_server, "--runner", cluster.address, "--target", "cost", code=2)
    assert (project.folder / "models" / "teacher" / "file").read_text() == "teacher\n"
    here = run(project, prefect_server, "--target", "cost", code=2)
    line = "error: cost: cost.samples: 3; more needed (every finished stage is kept)"
    assert there.splitlines()[-1] == here.splitlines()[-1] == line
    # Here nothing is left to do before it.
    assert states(prefect_server, here)["teacher"] == "Cached"
    assert tasks(prefect_server, there)["cost"]["run_count"] == 1


@pytest.mark.long
def test_a_stage_that_takes_too_long_there_is_ended(
    small: Project, pair: tuple[Place, Cluster], tmp_path: Path, prefect_server
) -> None:
    """Its workers' pull of what it needs is not counted; what is done before is kept."""
    project, cluster = small.copy(tmp_path / "project"), pair[1]
    plain(project, cost="sleep 778")
    options = ["--runner", cluster.address, "--target", "cost", "--timeout", "45"]
    shown = run(project, prefect_server, *options, code=2)
    assert "error: cost: ended after 45 s" in shown.splitlines()[-1]
    assert not asleep(cluster, 778)
    assert (project.folder / "models" / "teacher" / "file").read_text() == "teacher\n"
    assert tasks(prefect_server, shown)["cost"]["run_count"] == 1


@pytest.mark.long
def test_another_checkout_has_what_the_remote_has(
    small: Project, pair: tuple[Place, Cluster], tmp_path: Path, prefect_server
) -> None:
    """Neither cache nor dvc.lock is there: all of it is restored from where others have put it."""
    cluster = pair[1]
    options = ["--runner", cluster.address, "--target", "cost"]
    first = small.copy(tmp_path / "first")
    plain(first, prepare="echo first")
    run(first, prefect_server, *options)
    second = small.copy(tmp_path / "second")
    plain(second, prepare="echo first")
    shown = as_deployed(second, prefect_server, runner=cluster.address, targets=["cost"])
    found = states(prefect_server, shown)
    assert found.pop("check") == "Ran"  # it looks at what this machine has
    assert found == dict.fromkeys(["prepare", "teacher", "cost"], "Restored")
    alone = small.copy(tmp_path / "alone")  # on one machine
    plain(alone, prepare="echo first")
    run(alone, prefect_server, "--target", "cost")
    locks = {(each.folder / "dvc.lock").read_bytes() for each in (first, second, alone)}
    assert len(locks) == 1
    # A run without a cluster has nothing to do, and knows these runs as its own.
    shown = run(second, prefect_server, "--target", "cost")
    assert set(states(prefect_server, shown).values()) == {"Cached"}
    (second.folder / "dvc.lock").unlink()
    shown = run(second, prefect_server, "--target", "cost")
    assert "> " not in shown
    assert states(prefect_server, shown)["teacher"] == "Restored"


@pytest.mark.long
def test_an_experiment(
    small: Project, pair: tuple[Place, Cluster], tmp_path: Path, prefect_server
) -> None:
    project, cluster = small.copy(tmp_path / "project"), pair[1]
    before = project.run("git", "status", "--porcelain").stdout
    shown = run(
        project, prefect_server, "--runner", cluster.address, "--set", "cost.samples=30",
        "--target", "cost",
    )  # fmt: skip
    assert "`dvc exp apply cost.samples-30` brings it into this folder; of stages that" in shown
    assert project.run("git", "status", "--porcelain").stdout == before
    assert project.run("dvc", "exp", "list", "--name-only").stdout.split()[-1] == "cost.samples-30"
    done = project.run("dvc", "exp", "apply", "cost.samples-30", code=255)
    assert "Checkout failed for following targets" in done.stderr
    assert "results/cost.npz" not in done.stderr
    assert "samples: 30" in (project.folder / "params.yaml").read_text()
    assert (project.folder / "results" / "cost.npz").read_text() == "cost\n"

"""``boss repro``: the stages that do not need each other side by side, and nothing lost by it."""

import os
import re
import signal
from pathlib import Path

import pytest

from tests.helpers.flow import wait_for_line, wait_until_ended
from tests.helpers.project import Project

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core: one stage at a time"),
]


def test_stages_run_side_by_side_and_dvc_finds_nothing_to_do(
    finished: Project, tmp_path: Path
) -> None:
    project = finished.copy(tmp_path / "project")
    # Each ends once it has seen the other: one after the other they would never end.
    meets = "touch {me}; for i in $(seq 300); do test -e {other} && break; sleep 0.1; done"
    for me, other in (("cost", "floor"), ("floor", "cost")):
        paths = {"me": tmp_path / me, "other": tmp_path / other}
        project.stand_in(me, f"{meets.format(**paths)}; test -e {paths['other']}")
    budgets = {"me": f"{tmp_path}/${{item.budget}}", "other": f"{tmp_path}/$((4-${{item.budget}}))"}
    project.stand_in("finetune", meets.format(**budgets))
    shown = project.run("boss", "repro").stdout
    ran = re.findall(r"Running stage '([^']+)'", shown)
    assert sorted(ran) == ["cost", "finetune@1", "finetune@3", "floor"]
    assert "up to date" in project.run("dvc", "status").stdout
    assert "Running stage" not in project.run("dvc", "repro").stdout
    assert project.outputs() == finished.outputs()


def test_a_stage_that_fails_leaves_those_beside_it_whole(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    project.stand_in("finetune")
    fails = "test ${item.budget} = 3 || { echo 'error: no luck' >&2; exit 2; }; sleep 3"
    project.set_command("finetune", lambda command: f"{fails}; {command}")
    done = project.run("boss", "repro", code=2)
    errors = done.stderr.splitlines()
    assert errors[0] == "error: no luck"
    assert "failed: finetune@1: no luck" in errors
    assert errors[-1].startswith("error: the run stopped at the stage above; every finished stage")
    assert "Traceback" not in done.stdout + done.stderr
    assert project.outputs() == finished.outputs()
    mended = fails.replace("test ${item.budget} = 3", "true")
    project.set_command("finetune", lambda command: command.replace(fails, mended))
    # The other one's result is there already, but for its command.
    shown = project.run("boss", "repro").stdout
    assert "Running stage 'finetune@1'" in shown
    assert project.outputs() == finished.outputs()


def test_ended_in_the_middle_it_goes_on(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    project.stand_in("finetune", "sleep $((60 * (${item.budget} - 1)))")  # none for one of them
    for number in (signal.SIGINT, signal.SIGKILL):
        run = project.start("boss", "repro")
        wait_for_line(run, "> sleep $((60 * (3 - 1)))")
        os.kill(run.pid, number)
        run.communicate(timeout=60)
        wait_until_ended(project.folder)
        if number == signal.SIGINT:
            assert run.returncode == 2
            assert project.outputs() == finished.outputs()
    project.set_command("finetune", lambda command: command.replace("60", "0"))
    project.run("boss", "repro")
    assert "up to date" in project.run("dvc", "status").stdout
    assert project.outputs() == finished.outputs()

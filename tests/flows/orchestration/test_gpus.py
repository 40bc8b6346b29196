"""Which GPUs and threads a stage of the flow is shown, and that none is shown one in use."""

import os
import re
import socket
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pytest

from flows.orchestration.gpus import gpu_lock
from tests.helpers.flow import run, wait_for_line
from tests.helpers.prefect_api import api

pytestmark = pytest.mark.slow


@pytest.mark.long
def test_a_stage_sees_one_gpu_or_its_threads(flowed, tmp_path: Path, prefect_server) -> None:
    project = flowed[0].copy(tmp_path / "project")
    told = "echo sees gpu=$CUDA_VISIBLE_DEVICES threads=$OMP_NUM_THREADS; sleep 3"
    for stage in ("cost", "floor", "finetune"):
        project.stand_in(stage, told)
    for stage in ("features", "teacher"):  # of which as many processes would train
        project.stand_in(stage)
    own = prefect_server | {"OMP_NUM_THREADS": "5"}
    shown = run(project, own, "--target", "finetune", "--target", "floor")
    seen = re.findall(r"(\w+)[@\d]* - sees gpu= threads=(\d+)", shown.replace("'", ""))
    # The caller's: a stage with a small network takes one of them, and others take turns.
    assert sorted(seen) == [("cost", "5"), ("finetune", "5"), ("finetune", "5"), ("floor", "5")]
    for first, second in (
        (*started(shown, "cost.* - sees gpu"), *started(shown, "floor.* - sees gpu")),
        started(shown, "finetune.* - sees gpu"),
    ):
        assert abs(second - first) < timedelta(seconds=3)  # side by side

    project.set_command("finetune", lambda command: f"echo again; {command}")
    shown = run(project, own | {"CUDA_VISIBLE_DEVICES": "4,7"}, "--target", "finetune")
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    seen = re.findall(r"sees gpu=(\d*) threads=(\d+)", shown)
    assert sorted(seen) == [("4", str(share)), ("7", str(share))]
    assert gpu_limits(prefect_server) == {"4-7": 2}

    project.set_command("finetune", lambda command: f"echo once more; {command}")
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


@pytest.mark.long
def test_a_gpu_that_a_flow_of_another_server_holds_is_waited_for(
    flowed, tmp_path: Path, prefect_server
) -> None:
    project = flowed[0].copy(tmp_path / "project")
    project.stand_in("finetune", "echo trained at last")
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
    assert "> echo trained at last" in rest

"""Running the flow in a small project, and what its server then knows of it."""

import subprocess
import time
from pathlib import Path
from typing import Any

from tests.helpers.prefect_api import STAGES, api, flow_run
from tests.helpers.project import Project, running_in


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

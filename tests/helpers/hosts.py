"""Hosts that share nothing with each other but what the network would have: each a worker of a
Prefect work pool with a home, a folder for temporary files and a working folder of its own."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.helpers.prefect_api import api

# How often a worker asks for runs, in place of every ten seconds.
AT_ONCE = {"PREFECT_WORKER_QUERY_SECONDS": "2"}


def wait_until(done: Callable[[], Any], seconds: float, log: Path | None = None) -> Any:
    """What ``done`` returns once that is true; fails after so many seconds, with the log."""
    end = time.monotonic() + seconds
    while not (found := done()):
        shown = log.read_text() if log else ""
        assert time.monotonic() < end, f"not within {seconds} s\n{shown}"
        time.sleep(0.5)
    return found


@dataclass(frozen=True)
class Host:
    """A worker on a host, by the host's folder."""

    folder: Path

    @property
    def log(self) -> Path:
        return self.folder / "worker.log"

    def processes(self) -> list[int]:
        """All that run on this host: those whose home is here."""
        home = f"HOME={self.folder / 'home'}".encode()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if home in (process / "environ").read_bytes().split(b"\0"):
                    found.append(int(process.name))
        return found

    def lose(self) -> None:
        """As when the power goes: nothing on it says a word more."""
        while found := self.processes():
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)


@contextlib.contextmanager
def host(folder: Path, server: dict[str, str], pool: str) -> Iterator[Host]:
    """A host from the start of its worker to the end of all that runs there."""
    for name in ("home", "tmp", "work"):
        (folder / name).mkdir(parents=True)
    found = Host(folder)
    identity = "[user]\n\tname = host\n\temail = host@example.org\n"
    (folder / "home" / ".gitconfig").write_text(identity)
    # Nothing of this process's environment but where programs are.
    here = str(Path(sys.executable).parent)
    own = {
        "PATH": f"{here}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "PREFECT_HOME": str(folder / "home" / ".prefect"),
        "PREFECT_API_URL": server["PREFECT_API_URL"],
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DVC_SITE_CACHE_DIR": str(folder / "tmp" / "dvc"),
        "OMP_NUM_THREADS": "1",
    }
    with open(found.log, "w") as log:
        worker = subprocess.Popen(
            ["prefect", "worker", "start", "--pool", pool, "--name", folder.name],
            cwd=folder / "work",
            env=own | AT_ONCE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield found
    finally:
        if worker.poll() is None:
            os.killpg(worker.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(20)
        found.lose()
        worker.wait(10)


def start_run(server: dict[str, str], deployment: str, parameters: dict[str, Any]) -> str:
    """Ask for a run of a deployment of the flow; its id."""
    found = api(server, f"deployments/name/boss-pipeline/{deployment}")
    run = api(server, f"deployments/{found['id']}/create_flow_run", {"parameters": parameters})
    return run["id"]


def ended(server: dict[str, str], run: str, seconds: float, log: Path | None = None) -> dict:
    """A run once it is over."""

    def over() -> dict | None:
        found = api(server, f"flow_runs/{run}")
        final = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        return found if found["state_type"] in final else None

    return wait_until(over, seconds, log)

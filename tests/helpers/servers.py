"""Servers for the tests: real ones, on loopback, with their data in a temporary folder."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tests.helpers.project import environment


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def server(command: list[str], health: str, folder: Path, env: dict[str, str]) -> Iterator[None]:
    """A server from its start to its first answer at ``health``, ended with all it started."""
    log = folder / "server.log"
    with open(log, "w") as out:
        process = subprocess.Popen(
            command, cwd=folder, env=env, stdout=out, stderr=out, start_new_session=True
        )
    try:
        wait_for(health, process, log)
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(url: str, process: subprocess.Popen, log: Path, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise AssertionError(f"{url} did not answer in {seconds} s:\n{log.read_text()}")


@contextlib.contextmanager
def prefect_server(folder: Path) -> Iterator[dict[str, str]]:
    port = free_port()
    env = {"PREFECT_HOME": str(folder), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1"]
    command += ["--port", str(port)]
    # The pages ask the API where it really is; a server would tell them its default port.
    own = environment(env | {"PREFECT_UI_API_URL": env["PREFECT_API_URL"]})
    with server(command, f"{env['PREFECT_API_URL']}/health", folder, own):
        yield env


@contextlib.contextmanager
def mlflow_server(database: Path, artifacts: Path, folder: Path) -> Iterator[str]:
    """An MLflow server on a database; its address."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{database}"]
    command += ["--default-artifact-root", str(artifacts)]
    env = environment({"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"})
    with server(command, f"http://127.0.0.1:{port}/health", folder, env):
        yield f"http://127.0.0.1:{port}"

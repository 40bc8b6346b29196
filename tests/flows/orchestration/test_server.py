"""Prefect's server in the background: whose number is in its file."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from prefect.settings import PREFECT_HOME, temporary_settings

from boss_core.errors import InputError
from flows.orchestration import server
from tests.helpers.servers import free_port

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.mark.parametrize(
    ("command", "serves"),
    [(SLEEP, False), ([*SLEEP, "prefect", "server", "start"], True)],
)
def test_a_number_that_is_another_process_is_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], serves: bool
) -> None:
    pid = tmp_path / "server.pid"
    with subprocess.Popen(command) as process:
        try:
            pid.write_text(f"{process.pid}\n")
            command_line = Path(f"/proc/{process.pid}/cmdline")
            while not command_line.read_bytes():  # the system is a moment behind
                time.sleep(0.01)
            assert server._serves(pid) is serves
            monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{free_port()}/api")
            # A server that ends at once: what is looked at is what comes before it.
            monkeypatch.setattr(server.sys, "executable", "/bin/false")
            says = "another server that" if serves else "server.log: Prefect's server did not come"
            home = temporary_settings({PREFECT_HOME: tmp_path})
            with home, pytest.raises(InputError, match=says):
                server.start()
            assert pid.exists() is serves
            assert process.poll() is None
        finally:
            process.kill()
    assert not server._serves(pid)  # of one that ended


@pytest.mark.parametrize("content", ["", "prefect", "9" * 30, "-1"])
def test_no_number_of_a_process(tmp_path: Path, content: str) -> None:
    (tmp_path / "server.pid").write_text(content)
    assert not server._serves(tmp_path / "server.pid")

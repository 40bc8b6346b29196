"""Prefect's server in the background: whose number is in its file."""

import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import prefect
import pytest
from prefect.settings import PREFECT_HOME, temporary_settings

from boss_core.errors import InputError
from flows.orchestration import server
from tests.helpers.project import environment
from tests.helpers.servers import free_port

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
STALE = "server.log: Prefect's server did not come"


def refused(folder: Path, monkeypatch: pytest.MonkeyPatch, says: str) -> None:
    """Start a server that ends at once: what is looked at is what comes before it."""
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{free_port()}/api")
    monkeypatch.setattr(server.sys, "executable", "/bin/false")
    with temporary_settings({PREFECT_HOME: folder}), pytest.raises(InputError, match=says):
        server.start()


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
            refused(tmp_path, monkeypatch, "another server that" if serves else STALE)
            assert pid.exists() is serves
            assert process.poll() is None
        finally:
            process.kill()
    pid.write_text(f"{process.pid}\n")
    refused(tmp_path, monkeypatch, STALE)  # of one that ended
    assert not pid.exists()


@pytest.mark.parametrize("content", ["", "prefect", "9" * 30, "-1"])
def test_no_number_of_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    (tmp_path / "server.pid").write_text(content)
    refused(tmp_path, monkeypatch, STALE)
    assert not (tmp_path / "server.pid").exists()


# Runs a command where Prefect's package cannot be written, not even by root, and has no pages yet.
AS_INSTALLED = """
mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" || exit
for pages in "$0"/server/ui_build "$0"/server/ui_v2_build; do
  [ ! -d "$pages" ] || mount -t tmpfs -o ro none "$pages" || exit
done
exec "$@"
"""


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="only root mounts folders")
def test_pages_are_there_where_others_have_installed_prefect(tmp_path: Path) -> None:
    """By itself Prefect copies them into its own package, or has none."""
    at = f"http://127.0.0.1:{free_port()}"
    env = environment({"PREFECT_HOME": str(tmp_path), "PREFECT_API_URL": f"{at}/api"})
    package = str(Path(prefect.__file__).parent)
    closed = ["unshare", "--mount", "sh", "-c", AS_INSTALLED, package, sys.executable, "-m"]
    try:
        subprocess.run([*closed, "flows.cli.app", "server"], env=env, check=True, timeout=180)
        with urllib.request.urlopen(at, timeout=60) as page:
            assert b"<title>Prefect" in page.read()
    finally:
        stop = [sys.executable, "-m", "prefect", "server", "stop"]
        subprocess.run(stop, env=env, check=True, timeout=60)

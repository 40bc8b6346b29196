"""Prefect's server: where it is, whether it answers, and one in the background of this machine."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from boss_core.errors import InputError
from flows.telemetry import TELEMETRY_OFF

LOOPBACK = ("127.0.0.1", "localhost", "::1")
DEFAULT_URL = "http://127.0.0.1:4200/api"
# `prefect deployment run --watch` shows a run's log only where the server sends that out, which by
# itself it does not.
STREAMED_LOGS = {
    "PREFECT_SERVER_LOGS_STREAM_OUT_ENABLED": "true",
    "PREFECT_SERVER_LOGS_STREAM_PUBLISHING_ENABLED": "true",
}
# By itself Prefect keeps every run for ever, with its log; what counts is in files and in MLflow.
# Here 90 days, looked at every hour; of events it keeps a week by itself.
RETENTION = {
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": str(90 * 24 * 3600),  # seconds
}
START_TIMEOUT = 120.0  # seconds; a new database on a busy machine takes a while


def prefect_url() -> str | None:
    """The server that this shell's Prefect talks to, from the environment or its profile."""
    if "PREFECT_API_URL" in os.environ:
        return os.environ["PREFECT_API_URL"] or None
    from prefect.settings import get_current_settings

    return get_current_settings().api.url


def answers(url: str) -> bool:
    """Whether a Prefect server is at this address."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=5) as reply:
            # A page of something else answers, too; Prefect says no more than this word.
            return bool(reply.status == 200 and reply.read(16).strip() == b"true")
    except (OSError, ValueError, http.client.HTTPException):  # no address, or no such server
        return False


def start() -> str:
    """Start Prefect's server in the background, on loopback, at ``PREFECT_API_URL`` (the default
    port without it), and wait until it answers; what to know of it, in one line.

    It outlives the shell; its output goes to a file, as one whose pipes nobody reads is killed by
    its first full one (`prefect server start --background` starts such a server). Its pid is where
    `prefect server stop` looks for it. InputError for an address that is not of this machine, a
    port in use, and a server that does not come up.
    """
    url = prefect_url() or DEFAULT_URL
    host, port = _own_address(url)
    if answers(url):
        return f"Prefect's server is there already: {url.removesuffix('/api')}"
    if _in_use(host, port):
        raise InputError(
            f"PREFECT_API_URL: {url}; port {port} is in use by something else, another port needed"
        )
    from prefect.settings import get_current_settings

    home = Path(get_current_settings().home)
    home.mkdir(parents=True, exist_ok=True)
    pid, log = home / "server.pid", home / "server.log"
    if _serves(pid):
        raise InputError(
            f"{pid}: another server that was started in the background is running;"
            " `prefect server stop` ends it"
        )
    pid.unlink(missing_ok=True)  # of one that ended; `prefect server stop` would end a stranger
    process = _start_process(url, host, port, home, log)
    _wait_for_answer(url, process, log)
    pid.write_text(str(process.pid))
    return (
        f"Prefect's server: {url.removesuffix('/api')} (its output is in {log};"
        " `prefect server stop` ends it)"
    )


def _own_address(url: str) -> tuple[str, int]:
    """Host and port of a server's address; InputError where it is none on this machine."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, 80 if parts.port is None else parts.port
    except ValueError as error:  # no number, or none of a port
        raise InputError(f"PREFECT_API_URL: {url} ({error}); as {DEFAULT_URL} needed") from error
    plain = parts.scheme == "http" and parts.path.rstrip("/") == "/api" and port != 0
    if not plain or host not in LOOPBACK:
        raise InputError(
            f"PREFECT_API_URL: {url}; a server of this machine's own starts at an address as"
            f" {DEFAULT_URL} only"
        )
    return host, port


def _start_process(
    url: str, host: str, port: int, home: Path, log: Path
) -> "subprocess.Popen[bytes]":
    server = ["server", "start", "--host", host, "--port", str(port)]
    # The pages ask the API where it really is, on whatever port.
    own = {"PREFECT_API_URL": url, "PREFECT_UI_API_URL": url}
    with open(log, "wb") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "prefect", *server],
            env=STREAMED_LOGS | RETENTION | _pages(home) | os.environ | TELEMETRY_OFF | own,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )


def _pages(home: Path) -> dict[str, str]:
    """Prefect copies its pages into its own package; where another user has installed that, it has
    none, and says so in its log alone."""
    import prefect

    if os.access(Path(prefect.__file__).parent / "server", os.W_OK):
        return {}
    return {"PREFECT_UI_STATIC_DIRECTORY": str(home / "ui")}


def _wait_for_answer(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """InputError where none comes; then, and after Ctrl-C, the server is ended."""
    end = time.monotonic() + START_TIMEOUT
    try:
        while not answers(url):
            if process.poll() is not None or time.monotonic() > end:
                raise InputError(f"{log}: Prefect's server did not come up; the file says why")
            time.sleep(0.2)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        raise


def _in_use(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False


def _serves(pid: Path) -> bool:
    """Whether the process that a file names is a server of Prefect's, and not one that has its
    number since it ended. Where the system does not show commands, any process is taken for it."""
    try:
        number = int(pid.read_text())
        if number <= 0:  # of a group, or of all
            return False
        os.kill(number, 0)
    except (OSError, ValueError, OverflowError):
        return False
    try:
        command = Path(f"/proc/{number}/cmdline").read_bytes()
    except OSError:
        return not Path("/proc/self/cmdline").exists()
    return b"prefect" in command and b"server" in command

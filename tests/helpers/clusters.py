"""Dask and Ray clusters for the tests: real schedulers and workers as processes on loopback. The
workers share nothing with the caller or with each other but the network and a storage folder, which
stands for a bucket: each has a mount namespace of its own, in which the caller's folders are empty
and its home, temporary and working folders are its own."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.telemetry import TELEMETRY_OFF
from tests.helpers.project import Project, environment
from tests.helpers.servers import free_port

BIN = Path(sys.executable).parent
BROUGHT = "inputs/mine"  # data of the user's, which git ignores and DVC has


def can_unshare() -> bool:
    command = ["unshare", "--mount", "--propagation", "private", "true"]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


needs_namespaces = pytest.mark.skipif(
    not can_unshare(), reason="workers apart need mount namespaces: root, and `unshare`"
)


@dataclass
class Place:
    """Where a cluster of one test is. storage: what all see. workers: an empty folder here, in
    which each worker has files of its own. hidden: folders that no worker sees."""

    storage: Path
    workers: Path
    hidden: Sequence[Path]

    def apart(self, *command: str) -> list[str]:
        """A command in a namespace in which nothing of the caller's is."""
        cover = "".join(f"mount -t tmpfs none '{path}'; " for path in (*self.hidden, self.workers))
        script = f"set -e; {cover} cd '{self.workers}'; mkdir home tmp work; cd work; exec \"$@\""
        unshare = ["unshare", "--mount", "--propagation", "private"]
        return [*unshare, "sh", "-c", script, "sh", *command]

    @property
    def environment(self) -> dict[str, str]:
        """Of a machine of its own: nothing of the caller's."""
        return TELEMETRY_OFF | {
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(self.workers / "home"),
            "TMPDIR": str(self.workers / "tmp"),
            "LANG": "C.UTF-8",
            "OMP_NUM_THREADS": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
        }


@contextlib.contextmanager
def place(*hidden: Path) -> Iterator[Place]:
    folder = Path(tempfile.mkdtemp(prefix="boss-cluster-"))
    for name in ("storage", "workers"):
        (folder / name).mkdir()
    try:
        yield Place(folder / "storage", folder / "workers", hidden)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def give_remote(project: Project, at: Place) -> None:
    """Make the storage that all see the project's default remote."""
    project.run("dvc", "remote", "add", "--default", "storage", str(at.storage))
    project.commit("a remote")


@dataclass
class Cluster:
    """A running one. workers: the leaders of their process groups; log: of each, by its index."""

    address: str
    workers: "list[subprocess.Popen[bytes]]"
    logs: list[Path]


@contextlib.contextmanager
def dask_cluster(at: Place, folder: Path, workers: int) -> Iterator[Cluster]:
    """A scheduler, and workers of one thread, which nobody starts anew when they are lost."""
    port = free_port()
    with contextlib.ExitStack() as held:
        scheduler = ["dask", "scheduler", "--host", "127.0.0.1", "--port", str(port)]
        scheduler += ["--no-dashboard"]
        held.enter_context(_process(at.apart(*scheduler), at, folder / "scheduler.log"))
        address = f"127.0.0.1:{port}"
        worker = ["dask", "worker", f"tcp://{address}", "--nthreads", "1", "--no-nanny"]
        worker += ["--host", "127.0.0.1", "--no-dashboard"]
        found = [
            held.enter_context(
                _process(at.apart(*worker, "--name", f"w{n}"), at, folder / f"worker-{n}.log")
            )
            for n in range(workers)
        ]
        logs = [folder / f"worker-{n}.log" for n in range(workers)]
        _wait_for_lines(logs, "Registered to")
        yield Cluster(f"dask://{address}", found, logs)


@contextlib.contextmanager
def ray_cluster(at: Place, folder: Path, workers: int) -> Iterator[Cluster]:
    """A head on which nothing runs, and nodes for one stage at a time."""
    gcs, clients = free_port(), free_port()
    # Its sockets lie there, whose paths may not be long.
    own = ["--block", "--disable-usage-stats", "--object-store-memory", "80000000"]
    head = ["ray", "start", "--head", "--node-ip-address", "127.0.0.1", "--port", str(gcs)]
    head += ["--ray-client-server-port", str(clients), "--num-cpus", "0"]
    head += ["--include-dashboard", "false", "--temp-dir", str(at.workers / "r"), *own]
    node = ["ray", "start", "--address", f"127.0.0.1:{gcs}", "--num-cpus", "1", *own]
    with contextlib.ExitStack() as held:
        logs = [folder / "head.log", *(folder / f"node-{n}.log" for n in range(workers))]
        held.enter_context(_process(at.apart(*head), at, logs[0]))
        _wait_for_lines(logs[:1], "Ray runtime started")
        found = [held.enter_context(_process(at.apart(*node), at, log)) for log in logs[1:]]
        _wait_for_lines(logs[1:], "Ray runtime started")
        yield Cluster(f"ray://127.0.0.1:{clients}", found, logs[1:])


@contextlib.contextmanager
def _process(command: list[str], at: Place, log: Path) -> "Iterator[subprocess.Popen[bytes]]":
    with open(log, "wb") as out:
        process = subprocess.Popen(
            command, env=at.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        end(process)


def end(process: "subprocess.Popen[bytes]") -> None:
    """Kill a worker and all that it started."""
    started = descendants(process.pid)
    for pid in (process.pid, *started):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
            os.kill(pid, signal.SIGKILL)
    process.wait()


def descendants(pid: int) -> list[int]:
    """The processes that a process started, and theirs."""
    import psutil

    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _wait_for_lines(logs: list[Path], text: str, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not all(text in log.read_text() for log in logs):
        assert time.monotonic() < end, "\n".join(log.read_text() for log in logs)
        time.sleep(0.3)


def until(found: Callable[[], Any], seconds: float, process: "subprocess.Popen[str]") -> Any:
    """What ``found`` returns once that is something, while the process runs."""
    until = time.monotonic() + seconds
    while not (it := found()):
        assert process.poll() is None, f"ended: {process.returncode}"
        assert time.monotonic() < until, "not in time"
        time.sleep(0.1)
    return it


def start(
    project: Project, server: dict[str, str], log: Path, *options: str
) -> "subprocess.Popen[str]":
    """``boss run``, its output in a file."""
    with open(log, "w") as out:
        return subprocess.Popen(
            ["boss", "run", *options], cwd=project.folder, env=environment(server), stdout=out,
            stderr=subprocess.STDOUT, start_new_session=True, text=True,
        )  # fmt: skip


def plain(project: Project, **first: str) -> None:
    """Let every stage but `check` write its own name and nothing more: for tests of who runs it and
    when.

    first: shell commands that come before, by the stage."""
    path = project.folder / "dvc.yaml"
    pipeline = yaml.safe_load(path.read_text())
    for name, stage in pipeline["stages"].items():
        if name == "check":
            continue
        outs = [*stage["outs"], *stage.get("metrics", ())]
        files = [out if Path(out).suffix else f"{out}/file" for out in outs]
        made = [f"mkdir -p $(dirname {file}); echo {name} > {file}" for file in files]
        if name == "prepare" and (project.folder / BROUGHT).exists():  # as its stage reads it
            made.append(f"cat {BROUGHT}/1.txt >> data/file")
        stage["cmd"] = "; ".join([*filter(None, [first.get(name)]), *made])
    path.write_text(yaml.safe_dump(pipeline, sort_keys=False))


def asleep(
    cluster: Cluster, seconds: int, workers: "Sequence[subprocess.Popen[bytes]]" = ()
) -> list[int]:
    """The processes below the workers, of all or of some, that sleep so long."""
    found = []
    for worker in workers or cluster.workers:
        for pid in descendants(worker.pid):
            with suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_bytes() == f"sleep\0{seconds}\0".encode():
                    found.append(pid)
    return found

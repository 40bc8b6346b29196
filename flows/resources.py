"""What each stage may use of the machine: one GPU, or its share of the processor's threads."""

import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import gettempdir

from filelock import FileLock, Timeout

from flows.config import Params
from flows.workspace import StageError

WORKERS = 2  # stages side by side
TIMEOUT = 24 * 3600.0  # seconds for one stage
_GPUS = f"boss-gpu-{socket.gethostname()}"


def visible_gpus(params: Params) -> list[str]:
    """The GPUs that stages may use, as CUDA names them; none where the device is the CPU.

    Asked of the environment or the driver, as importing torch would take seconds."""
    if params.device == "cpu":
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name and name != "-1"]
    try:
        query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        listed = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return listed.stdout.split() if listed.returncode == 0 else []


def announce_gpus(gpus: list[str]) -> None:
    """Tell Prefect how many GPUs these are, as a limit named after the machine and them: flows
    that are shown others of its GPUs have a limit of their own."""
    if not gpus:
        return
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(gpu_limit(gpus), len(gpus))


@contextmanager
def gpu_slot(
    gpus: list[str], *, stopped: threading.Event, log: Callable[[str], None]
) -> Iterator[dict[str, str]]:
    """Wait for a GPU and yield the variable that shows a stage that one alone.

    Which GPU it is, a file lock decides: it holds between flows of several Prefect servers and of
    other sets of GPUs too, and the system releases it should its holder die. Prefect's limit,
    which shows on its pages who is at work, is taken after it and so is never waited for.
    stopped: ends the wait, with StageError. log: told once that there is one.
    """
    if not gpus:
        yield {}
        return
    from prefect.concurrency.sync import concurrency

    with ExitStack() as held:
        gpu = _lock_one(gpus, held)
        if gpu is None:
            log(f"waiting for a GPU: {', '.join(gpus)} in use by other stages")
        while gpu is None:
            if stopped.wait(1):
                raise StageError(f"stopped while waiting for a GPU of {', '.join(gpus)}")
            gpu = _lock_one(gpus, held)
        held.enter_context(concurrency(gpu_limit(gpus), strict=True))
        yield {"CUDA_VISIBLE_DEVICES": gpu, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def _lock_one(gpus: list[str], held: ExitStack) -> str | None:
    for gpu in gpus:
        try:
            held.enter_context(gpu_lock(gpu).acquire(timeout=0))
        except Timeout:
            continue
        return gpu
    return None


def gpu_lock(gpu: str) -> FileLock:
    """What whoever uses a GPU of this machine holds."""
    return FileLock(Path(gettempdir()) / f"{_GPUS}-{gpu}.lock", mode=0o666)


def gpu_limit(gpus: list[str]) -> str:
    """The name of Prefect's limit for a set of GPUs."""
    return "-".join([_GPUS, *sorted(gpus)])


def threads(workers: int) -> int:
    """Threads for one stage: its share of the cores, whatever runs beside it at the time.

    Two stages with a thread for each core wait for one another at every operation, and take some
    fifty times as long; and a stage's last bits depend on its threads, so on nothing but this."""
    return max(1, len(os.sched_getaffinity(0)) // workers)

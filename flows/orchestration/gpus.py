"""What each stage may use of a machine with GPUs: one for each of its processes, and its share of
the processor's threads."""

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
from flows.workspace.process import StageError

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
    gpus: list[str], count: int = 1, *, stopped: threading.Event, log: Callable[[str], None]
) -> Iterator[dict[str, str]]:
    """Wait for GPUs, as many as are counted or all that there are, and yield the variable that
    shows a stage those alone.

    Which GPU it is, a file lock decides: it holds between flows of several Prefect servers and of
    other sets of GPUs too, and the system releases it should its holder die. Prefect's limit,
    which shows on its pages who is at work, is taken after it and so is never waited for. Several
    are taken at once or not at all: stages that each hold one would wait for the other's.
    stopped: ends the wait, with StageError. log: told once that there is one.
    """
    if not gpus:
        yield {}
        return
    from prefect.concurrency.sync import concurrency

    count = min(count, len(gpus))  # one that needs more than there are says so itself
    what = "a GPU" if count == 1 else f"{count} GPUs"
    with ExitStack() as held:
        own = _lock(gpus, count, held)
        if not own:
            log(f"waiting for {what}: {', '.join(gpus)} in use by other stages")
        while not own:
            if stopped.wait(1):
                raise StageError(f"stopped while waiting for {what} of {', '.join(gpus)}")
            own = _lock(gpus, count, held)
        held.enter_context(concurrency(gpu_limit(gpus), occupy=count, strict=True))
        yield {"CUDA_VISIBLE_DEVICES": ",".join(own), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def _lock(gpus: list[str], count: int, held: ExitStack) -> list[str]:
    """Those that are locked now, until ``held`` ends; none where so many are not free."""
    own = []
    with ExitStack() as tried:
        for gpu in gpus:
            try:
                tried.enter_context(gpu_lock(gpu).acquire(timeout=0))
            except Timeout:
                continue
            own.append(gpu)
            if len(own) == count:
                held.enter_context(tried.pop_all())
                return own
    return []


def gpu_lock(gpu: str) -> FileLock:
    """What whoever uses a GPU of this machine holds."""
    return FileLock(Path(gettempdir()) / f"{_GPUS}-{gpu}.lock", mode=0o666)


def gpu_limit(gpus: list[str]) -> str:
    """The name of Prefect's limit for a set of GPUs."""
    return "-".join([_GPUS, *sorted(gpus)])


def threads(workers: int) -> int:
    """Threads for each of so many stages side by side on GPUs: its share of the cores.

    Two stages with a thread for each core wait for one another at every operation, and take some
    fifty times as long."""
    return max(1, len(os.sched_getaffinity(0)) // workers)

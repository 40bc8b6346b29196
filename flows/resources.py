"""What each stage may use of the machine: one GPU, or its share of the processor's threads."""

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import gettempdir

from filelock import FileLock, Timeout

from flows.config import Params

GPU_LIMIT = f"boss-gpu-{socket.gethostname()}"


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
    """Tell Prefect how many GPUs this machine has, as a limit named after the machine."""
    if not gpus:
        return
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(GPU_LIMIT, len(gpus))


@contextmanager
def gpu_slot(gpus: list[str]) -> Iterator[dict[str, str]]:
    """Wait for a slot of the limit and yield the variable that shows a stage its GPU alone.

    The limit counts, over all flows on this machine; which GPU it is, a file lock decides,
    which the system releases should its holder die."""
    if not gpus:
        yield {}
        return
    from prefect.concurrency.sync import concurrency

    with concurrency(GPU_LIMIT, strict=True), ExitStack() as held:
        for gpu in gpus:
            lock = FileLock(Path(gettempdir()) / f"{GPU_LIMIT}-{gpu}.lock", mode=0o666)
            try:
                held.enter_context(lock.acquire(timeout=0))
            except Timeout:
                continue
            yield {"CUDA_VISIBLE_DEVICES": gpu, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
            return
        raise RuntimeError(f"every GPU of {', '.join(gpus)} is in use, though {GPU_LIMIT} is not")


def threads(workers: int) -> int:
    """Threads for one stage: its share of the cores, whatever runs beside it at the time.

    Two stages with a thread for each core wait for one another at every operation, and take some
    fifty times as long; and a stage's last bits depend on its threads, so on nothing but this."""
    return max(1, len(os.sched_getaffinity(0)) // workers)

"""What every stage does first: read the parameters, choose the device, make torch repeatable; and
for those that train, be as many processes as the parameters ask for."""

import os
import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from boss_core.errors import InputError
from flows.config import Params, load_params
from flows.errors import reported
from flows.workspace.integrity import check_inputs

if TYPE_CHECKING:
    import torch

# How long another process waits for the main one to fail as it does, and say so for both.
_PATIENCE = 10.0  # seconds
# The file through which the processes of one training find each other.
_STORE = "BOSS_PROCESS_STORE"
# A file that whoever has all cores has locked, of the stages of one run.
TURNS = "BOSS_TURNS"
_turn: FileLock | None = None  # the system lets go of it when this process ends


def run_stage(
    stage: Callable[[Params], None], *, trains: Callable[[Params], bool] = lambda _: False
) -> None:
    """Run one stage of dvc.yaml as a command.

    trains: whether the stage trains a network, which ``compute.processes`` do together: those
        that accelerate or torchrun started, or else that are started here.
    """
    with reported():
        params = load_params()
        if "WORLD_SIZE" not in os.environ:  # one of several looks for all
            check_inputs()
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS: same bits each run
        try:
            if trains(params):
                _check_processes(params)
                if params.compute.processes > 1 and "WORLD_SIZE" not in os.environ:
                    _start_processes(params.compute.processes)
                    return
            elif _started() > 1:
                raise InputError(
                    f"stage: started as {_started()} processes, but with these parameters it trains"
                    " nothing; one needed"
                )
            stage(params)
            if _started() > 1:
                from torch import distributed

                if distributed.is_initialized():  # NCCL warns of those that go without a word
                    distributed.destroy_process_group()
        except InputError:
            if not is_main():
                time.sleep(_PATIENCE)  # is ended with the main process, if that fails too
            raise


def is_main() -> bool:
    """Whether this process is the one that writes; the others only train with it."""
    return os.environ.get("RANK", "0") == "0"


def check_device(params: Params) -> None:
    """InputError when this machine has not the GPUs that the parameters ask for."""
    if params.device != "cuda" and (params.compute.processes == 1 or params.device == "cpu"):
        return
    import torch

    _check_gpu(params)
    wanted, gpus = params.compute.processes, torch.cuda.device_count()
    here = int(os.environ.get("LOCAL_WORLD_SIZE", wanted))
    if 0 < gpus < here:
        raise InputError(
            f"params.yaml: compute.processes: {here} on this machine, and torch finds {gpus} GPU"
            f"{'s' if gpus > 1 else ''}; one each needed"
        )


def device(params: Params, *, small: bool = False) -> "torch.device":
    """The device to compute on, of this process where there are several; from here on torch
    gives the same bits run after run.

    small: all that the stage computes with is (`boss_core.networks.threads.is_small`). On a CPU it
    then has one thread, so that its bits do not depend on the cores, which other stages use
    meanwhile. Anything else has all threads, and what `boss repro` or the flow runs beside it waits
    for its turn."""
    import torch

    if params.compute.compile:
        torch.use_deterministic_algorithms(True)
    else:  # the same but for torch.compile, whose settings take a second to import
        torch.set_deterministic_debug_mode("error")
    # It would fill all new memory, which shows who reads it before writing and repeats nothing.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    _check_gpu(params)
    on_cpu = params.device == "cpu" or not torch.cuda.is_available()
    if on_cpu and small:
        torch.set_num_threads(1)
    elif on_cpu and _started() == 1 and torch.get_num_threads() > 1:
        _take_turn()
    if _started() > 1:
        from accelerate import PartialState

        # Joins the processes: through a file where they were started here, else as their launcher
        # says.
        here: dict[str, Any] = {}
        if store := os.environ.get(_STORE):
            here = {"init_method": f"file://{store}", "rank": int(os.environ["RANK"])}
            here["world_size"] = _started()
        return PartialState(cpu=on_cpu, **here).device
    return torch.device("cpu" if on_cpu else "cuda")


def _take_turn() -> None:
    """Wait until no other stage of this run has all cores, and have them until this process ends:
    threads of two stages that wait for one another at every operation take many times as long."""
    global _turn
    path = os.environ.get(TURNS)
    if path is None or _turn is not None:  # nothing is run beside this, or it has them already
        return
    _turn = FileLock(path)
    try:
        _turn.acquire(timeout=0)
    except Timeout:
        print("waiting for the cores: another stage computes on all of them", flush=True)
        _turn.acquire()


def _check_gpu(params: Params) -> None:
    import torch

    if params.device == "cuda" and not torch.cuda.is_available():
        raise InputError("params.yaml: device: cuda, but torch finds no GPU; auto or cpu needed")


def _started() -> int:
    """The processes that accelerate or torchrun started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _check_processes(params: Params) -> None:
    wanted, started = params.compute.processes, _started()
    if started > 1 or "WORLD_SIZE" in os.environ:
        if started != wanted:
            raise InputError(
                f"params.yaml: compute.processes: {wanted}, but {started} were started; the same"
                " number needed, as it is recorded with the result"
            )
        _end_with_launcher()
    if wanted > 1:
        check_device(params)


def _start_processes(number: int) -> None:
    """This command again, as so many processes, by the launcher behind torchrun and accelerate;
    ends as the first of them that fails.

    They meet in files of a folder that is this user's alone, and talk on loopback. The launcher's
    way over the network would listen on all interfaces and unpickle whatever it is sent."""
    import logging

    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # It would say at length that a process failed, which that has said itself.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // number)))
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # a server that nobody here would ask
    for library in ("GLOO", "NCCL"):
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")
    module = sys.modules["__main__"].__spec__.name  # type: ignore[union-attr]
    with tempfile.TemporaryDirectory(prefix="boss-processes-") as folder:
        os.environ[_STORE] = f"{folder}/workers"
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=number,
            run_id=secrets.token_hex(16),
            rdzv_backend="c10d",
            rdzv_endpoint=f"{folder}/launcher",
            rdzv_configs={"store_type": "file"},
            max_restarts=0,
            monitor_interval=0.2,
        )
        try:
            elastic_launch(config, sys.executable)("-m", module, *sys.argv[1:])
        except ChildFailedError as error:
            code = error.get_first_failure()[1].exitcode
            raise SystemExit(code if code > 0 else 1) from None


def _end_with_launcher() -> None:
    """End with the process that started this one: killed, it could not end us."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

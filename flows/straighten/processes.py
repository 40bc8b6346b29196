"""One command, or several processes of it that train together (`accelerate launch`, torchrun)."""

import os
import time
from datetime import timedelta

import torch

from boss_core.training import distributed
from flows.search.options import choose_device

# The others wait for what the main process does alone, as the search: that takes what it takes.
_PATIENCE = timedelta(days=7)


def join_processes(device: str) -> torch.device:
    """The device of this process, by the option ``--device``; all are joined where there are
    several, started by a launcher."""
    on = choose_device(device, float64=True)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return on
    from accelerate import PartialState

    return PartialState(cpu=on.type == "cpu", timeout=_PATIENCE).device


def is_main() -> bool:
    """Whether this process is the one that writes and speaks."""
    return distributed.own_share().rank == 0


def say(line: str) -> None:
    """Print a line, once for all processes."""
    if is_main():
        print(line, flush=True)


def seconds_now(device: torch.device) -> float:
    """The clock, once the device is done with what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()

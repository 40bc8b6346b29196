"""What processes that train together tell each other."""

import json
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing

from boss_core.training import distributed as processes

CPU = torch.device("cpu")


def total(rank: int, folder: Path) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    found = [processes.total(value, CPU) for value in (0.1 + rank, float("nan") if rank else 1.0)]
    (folder / f"{rank}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


def test_a_total_is_over_all_processes(tmp_path: Path) -> None:
    """As of energy: where one of them has no counter, the sum is not a number."""
    assert processes.total(0.25, CPU) == 0.25
    multiprocessing.spawn(total, (tmp_path,), nprocs=2)
    for rank in (0, 1):
        both, one = json.loads((tmp_path / f"{rank}.json").read_text())
        assert both == pytest.approx(1.2)
        assert one != one

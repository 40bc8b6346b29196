"""Trainings of `tests.helpers.trainer`, in this process or in others, and what they leave."""

import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.helpers.checkout import ROOT
from tests.helpers.project import environment
from tests.helpers.trainer import DEFAULTS, main


def here(folder: Path, **given: float) -> Path:
    """Train in this process."""
    folder.mkdir(exist_ok=True)
    main(folder, DEFAULTS | given)
    return folder


def started(
    folder: Path, *, processes: int = 1, code: int = 0, **given: float
) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m"]
    if processes > 1:
        command += [
            "torch.distributed.run", "--nproc-per-node", str(processes), "--rdzv-backend", "c10d",
            "--rdzv-endpoint", "localhost:0", "-m",
        ]  # fmt: skip
    command += ["tests.helpers.trainer", str(folder), *(f"{k}={v}" for k, v in given.items())]
    done = subprocess.run(
        command, cwd=ROOT, env=environment({"OMP_NUM_THREADS": "1"}), capture_output=True, text=True
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "result.safetensors")


def steps(folder: Path) -> list[int]:
    """Of the checkpoints that are there."""
    return sorted(int(path.stem) for path in (folder / "checkpoints").iterdir())


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)

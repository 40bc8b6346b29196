"""Straightens a network in a folder, as one of the processes that a test starts.

python -m tests.helpers.straightener FOLDER; the student lies in FOLDER/student.
"""

import os
import sys
from pathlib import Path

import torch
from torch import distributed

from boss_core.ode.noise import NoiseSource
from boss_core.ode.schedule import Schedule
from boss_core.ode.timesteps import uniform
from boss_core.straightening.straighten import StraightenSettings, straighten
from boss_core.training.distributed import own_share
from tests.helpers.own_network import Plain, training


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    if "WORLD_SIZE" in os.environ:
        distributed.init_process_group("gloo")
    schedule = Schedule(timesteps=tuple(uniform(2)), objective="uniform")
    chosen = StraightenSettings(
        training(iterations=12, batch_size=8), trajectories=50, grid=10, rollout_batch=20
    )
    (student,) = straighten(Plain(), [schedule], NoiseSource((2,), 0), chosen, folder=folder)
    if own_share().rank == 0:
        student.save(folder / "student")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

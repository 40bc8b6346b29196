"""One rollout for several schedules: its grid, and what there is of it on the disk."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from boss_core.ode.noise import TRAJECTORIES, NoiseSource
from boss_core.ode.schedule import Schedule, from_sigmas
from boss_core.ode.solvers import euler
from boss_core.ode.timesteps import quadratic, uniform
from boss_core.straightening.rollout import on_one_grid, roll_out
from tests.helpers.checkout import ROOT
from tests.helpers.linear import Linear
from tests.helpers.project import environment
from tests.helpers.refusals import refused
from tests.helpers.straightener import main

SOURCE = NoiseSource((3,), 5)


def schedule(*times: float) -> Schedule:
    return Schedule(timesteps=times)


def test_times_of_all_schedules_lie_on_the_grid_as_they_are() -> None:
    third = from_sigmas([1, 2 / 3, 1 / 3, 0])
    fifth = schedule(0.0, 0.2, 0.1 + 0.2, 1.0)  # 0.30000000000000004
    grid, (a, b) = on_one_grid([third, fifth], 10)
    assert len(grid) == 11 + 2
    assert tuple(grid[list(a.indices)]) == third.timesteps
    assert tuple(grid[list(b.indices)]) == fifth.timesteps
    assert b.indices == (0, 2, 3, 12)
    assert np.diff(grid).min() > 0.01
    refused(lambda: on_one_grid([schedule(*quadratic(11))], 10), "11 steps on a grid of 10")


def test_states_are_those_of_the_fine_rollout(tmp_path: Path) -> None:
    two, three = schedule(*uniform(2)), schedule(0.0, 0.3, 0.9, 1.0)
    noise, _ = SOURCE.draw(range(7), TRAJECTORIES)
    seen = {}
    euler(Linear(), noise, uniform(10), observer=lambda k, x, v: seen.update({k: x.numpy()}))
    told: list[int] = []
    for folder in (None, tmp_path):
        found = roll_out(
            Linear(), [two, three], SOURCE, trajectories=7, grid=10, batch_size=3, folder=folder,
            on_step=told.append,
        )  # fmt: skip
        assert found.knots == (0, 3, 5, 9, 10)
        for place, knot in enumerate(found.knots):
            np.testing.assert_allclose(found.states[:, place], seen[knot], rtol=1e-6)
    assert sum(told) == 2 * 70


def test_what_a_killed_rollout_had_done_is_not_done_again(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    calls = 0

    def velocity(x, t):
        nonlocal calls
        calls += 1
        if calls == 25:  # in the third part
            raise Killed
        return Linear()(x, t)

    def run(of) -> np.ndarray:
        return roll_out(
            of, [schedule(0.0, 0.5, 1.0)], SOURCE, trajectories=7, grid=10, batch_size=3,
            folder=tmp_path, teacher_hash="a", on_step=told.append,
        ).states  # fmt: skip

    told: list[int] = []
    with pytest.raises(Killed):
        run(velocity)
    told.clear()
    found = run(velocity)
    # Ten to compare the first trajectories, and those of the part that was cut off.
    assert calls == 25 + 10 + 10
    assert sum(told) == 70
    assert told[:2] == [30, 30]
    whole = roll_out(
        Linear(), [schedule(0.0, 0.5, 1.0)], SOURCE, trajectories=7, grid=10, batch_size=3
    )
    assert found.tobytes() == whole.states.tobytes()
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 0


@pytest.mark.slow
@pytest.mark.long
def test_two_processes_share_a_rollout_and_train_the_student_of_one(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    main(tmp_path / "one")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
        "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m",
        "tests.helpers.straightener", str(tmp_path / "two"),
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, env=environment({"OMP_NUM_THREADS": "1"}), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    one, two = ((tmp_path / name / "trajectories" / "states.npy") for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    found, expected = (
        load_file(tmp_path / name / "student" / "student.safetensors") for name in ("two", "one")
    )
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-3)
        start = torch.zeros(()) if name.startswith("layers.4") else None
        assert start is None or float(weight.abs().max()) > 5e-3

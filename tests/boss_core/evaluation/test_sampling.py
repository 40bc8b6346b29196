"""Images from a velocity and steps, by each solver."""

import numpy as np
import pytest
import torch

from boss_core.errors import InputError
from boss_core.evaluation.sampling import sample_images
from boss_core.io.pixels import to_uint8
from boss_core.ode.noise import sample_noise
from boss_core.ode.solvers import SOLVERS
from boss_core.ode.timesteps import quadratic
from boss_core.ode.velocity import CountedVelocity
from tests.helpers.linear import Linear

SHAPE = (1, 4, 4)


def sample(solver: str, velocity: CountedVelocity, **change) -> np.ndarray:
    chosen = {"samples": 5, "seed": 2, "batch_size": 3, "solver": solver} | change
    return sample_images(velocity, quadratic(3), shape=SHAPE, device=torch.device("cpu"), **chosen)


def test_images_are_those_of_the_solver() -> None:
    found = {}
    for solver, evaluations in (("euler", 3), ("ab2", 3), ("heun", 6)):
        counted = CountedVelocity(Linear())
        found[solver] = sample(solver, counted)
        end = SOLVERS[solver](Linear(), sample_noise(range(5), SHAPE, 2), quadratic(3))
        np.testing.assert_array_equal(found[solver], to_uint8(end).numpy())
        assert counted.nfe == 2 * evaluations  # in two batches
    assert (found["euler"] != found["ab2"]).any()
    assert (found["heun"] != found["ab2"]).any()


def test_sampling_tells_its_progress() -> None:
    told = []
    sample("euler", CountedVelocity(Linear()), on_step=told.append)
    assert told == [3, 2]


def test_no_samples_are_refused() -> None:
    with pytest.raises(InputError, match="samples: 0; at least 1 needed"):
        sample("euler", CountedVelocity(Linear()), samples=0)


def test_an_unknown_solver_is_refused() -> None:
    with pytest.raises(
        InputError, match="solver: 'ab3'; one of euler, ab2, multistep, heun needed"
    ):
        sample("ab3", CountedVelocity(Linear()))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_samples_that_are_not_finite_are_refused(value: float) -> None:
    def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.where((t > 0.5).view(-1, 1, 1, 1) & (x == x.max()), value, x)

    with pytest.raises(InputError, match="velocity: samples 0 to 2 are not finite at t = 1; a net"):
        sample("euler", CountedVelocity(velocity))


@pytest.mark.parametrize("times", [[], 0.5, [0.0], [0.0, float("nan"), 1.0]])
def test_what_is_no_list_of_times_is_refused(times) -> None:
    with pytest.raises(InputError, match="timesteps: "):
        sample_images(
            Linear(),
            times,
            samples=1,
            shape=(1, 2, 2),
            seed=0,
            batch_size=1,
            device=torch.device("cpu"),
        )

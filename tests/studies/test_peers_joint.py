"""Steps refined together with weights: the descent against all there are, and what it is for."""

import itertools

import numpy as np
import pytest
import torch

from boss_core.checkpoints.load import Teacher
from boss_core.ode.noise import NoiseSource
from studies.peers_joint import refine_jointly
from studies.peers_methods import Searches

N = 20


def test_what_has_one_valley_is_descended_to_its_bottom() -> None:
    wanted = (0, 3, 11, 12, N)
    asked = []

    def off(indices):
        asked.append(indices)
        return float(np.abs(np.subtract(indices, wanted)).sum())

    assert refine_jointly((0, 5, 10, 15, N), off) == wanted
    assert len(asked) == len(set(asked))
    assert all(indices == tuple(sorted(set(indices))) for indices in asked)
    assert all((indices[0], indices[-1]) == (0, N) for indices in asked)


@pytest.mark.parametrize("seed", range(5))
def test_no_single_knot_can_be_moved_to_less(seed: int) -> None:
    draw = np.random.default_rng(seed).random((N + 1, N + 1))

    def off(indices):
        return sum(draw[i, j] for i, j in itertools.pairwise(indices))

    found = refine_jointly((0, 5, 10, 15, N), off, sweeps=20)
    assert off(found) <= off((0, 5, 10, 15, N))
    for k in (1, 2, 3):
        for node in (found[k] - 1, found[k] + 1):
            if found[k - 1] < node < found[k + 1]:
                assert off((*found[:k], node, *found[k + 1 :])) >= off(found)


def test_refined_steps_end_nearer_on_noise_that_they_were_not_fitted_to() -> None:
    """A curved flow in two dimensions: by the ends of the held-out noises, which they are chosen
    by, never further than their own steps."""

    def velocity(x, t):
        t = t.view(-1, 1)
        return torch.sin(3 * x + 4 * t) + x * t**2

    source = NoiseSource((3,), 0, "cpu")
    teacher = Teacher(velocity=velocity, shape=(3,), hash="", classes=None)
    searches = Searches(teacher, source, [3, 4], grid=N, costs=40, batch_size=40)
    noise, _, ends = searches.held_out

    def off(steps: str, budget: int) -> float:
        return float((searches.fitted(budget, steps, 3)(velocity, noise) - ends).square().mean())

    assert all(off("joint", k) <= off("own", k) for k in (3, 4))
    assert any(off("joint", k) < off("own", k) for k in (3, 4))

"""A network that works in place on what it is given: the same samples and schedules as without,
and the caller's noise as it was."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from boss_core.costs.fine_states import roll_out_states
from boss_core.costs.fit import fit_weights
from boss_core.costs.heun import estimate_heun_costs
from boss_core.costs.matrix import estimate_cost_matrix
from boss_core.errors import InputError
from boss_core.evaluation.sampling import sample_images
from boss_core.ode.denoiser import velocity_from_denoiser
from boss_core.ode.noise import sample_noise
from boss_core.ode.solvers import euler, rk45
from boss_core.ode.timesteps import uniform
from boss_core.ode.velocity import checked_velocity, with_labels
from boss_core.search.choose import roll_out
from boss_core.search.distances import sliced_wasserstein
from boss_core.search.forward import oss_paths
from boss_core.search.lpips import estimate_lpips_costs
from boss_core.search.refine import refine
from boss_core.straightening.loss import straightening_loss
from boss_core.straightening.segments import knot_states
from boss_core.training.flow_matching import flow_matching_loss
from tests.helpers.solvers import solvers

GRID, SHAPE = uniform(6), (1, 2, 2)
LABELS = torch.tensor([0, 1, 2, 1])


def pure(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    shift = (t + torch.where(labels == 2, 0, labels)).view(-1, 1, 1, 1)
    return torch.cos(3 * (2 * x - 1) + shift)


def in_place(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    """The same: rescales its input, drops a label and returns the input's own memory."""
    labels[labels == 2] = 0
    t.add_(labels)
    return x.mul_(2).sub_(1).mul_(3).add_(t.view(-1, 1, 1, 1)).cos_()


def solved(solver: Any) -> Callable[[Any, Tensor, Tensor], Any]:
    return lambda v, x, labels: solver(with_labels(v, labels), x, GRID)


def measured(reference: str) -> Callable[[Any, Tensor, Tensor], Any]:
    return lambda v, x, labels: (
        estimate_cost_matrix(v, x, GRID, batch_size=3, labels=labels, reference=reference).cost
    )


def heun_measured(v: Any, x: Tensor, labels: Tensor) -> Any:
    return estimate_heun_costs(v, x, GRID, batch_size=3, labels=labels).cost


def refined(v: Any, x: Tensor, labels: Tensor) -> Any:
    distance = sliced_wasserstein(torch.linspace(-1, 1, x.numel()).view_as(x))
    found = refine(v, x, GRID, [(0, 2, 6)], distance, solver="ab2", batch_size=3, labels=labels)
    return found.indices, found.distance


def forward(v: Any, x: Tensor, labels: Tensor) -> Any:
    found = oss_paths(v, x, GRID, [3], solver="ab2", labels=labels, batch_size=3)[3]
    return found.indices, found.cost


def by_images(v: Any, x: Tensor, labels: Tensor) -> Any:
    def distance(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().flatten(1).sum(dim=1)

    return estimate_lpips_costs(v, x, GRID, distance, batch_size=3, labels=labels)


def ends(v: Any, x: Tensor, labels: Tensor) -> Any:
    return roll_out(v, x, GRID, batch_size=3, labels=labels).ends


def fitted(v: Any, x: Tensor, labels: Tensor) -> Any:
    noise, classes = x.repeat(3, 1, 1, 1), labels.repeat(3)
    states = roll_out_states(v, noise, GRID, batch_size=5, labels=classes)
    knots = [0, 2, 4, 6]
    found = fit_weights(v, states[knots], GRID[knots], batch_size=5, labels=classes)
    return states, found.weights


def stored(v: Any, x: Tensor, labels: Tensor) -> Any:
    out = np.zeros((4, 2, *SHAPE), np.float32)
    on = torch.device("cpu")
    knot_states(v, GRID, (0, 3), out, seed=0, batch_size=4, device=on, labels=labels)
    return out


def images(v: Any, x: Tensor, labels: Tensor) -> Any:
    return sample_images(
        v, GRID, samples=4, shape=SHAPE, seed=0, batch_size=3, device=torch.device("cpu"),
        labels=labels,
    )  # fmt: skip


def straightened(v: Any, x: Tensor, labels: Tensor) -> Any:
    # One row, whose start is no copy by itself.
    states, times = torch.stack([x[0], x[1]])[None], torch.tensor([[0.5, 0.25]])
    loss = straightening_loss(with_labels(v, labels[:1]), states, times, torch.ones(1, 1))
    return loss, states, times


USES = {
    **{name: solved(solver) for name, solver in solvers(6).items()},
    "rk45": solved(rk45),
    **{f"costs by {name}": measured(name) for name in ("euler", "heun", "rk45")},
    "heun's costs": heun_measured,
    "refine": refined,
    "oss": forward,
    "lpips": by_images,
    "the teacher's ends": ends,
    "fitted weights": fitted,
    "trajectories": stored,
    "images": images,
    "straightening": straightened,
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_results_are_those_of_a_network_that_leaves_its_input(use) -> None:
    noise, labels = sample_noise(range(4), SHAPE, seed=0), LABELS.clone()
    found = use(in_place, noise, labels)
    assert torch.equal(noise, sample_noise(range(4), SHAPE, seed=0))
    assert torch.equal(labels, LABELS)
    expected = use(pure, noise, labels)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, check_dtype=True)


def test_a_denoiser_in_place() -> None:
    def denoiser(y: Tensor, sigma: Tensor) -> Tensor:
        return y.mul_(sigma.neg_().exp_().view(-1, 1, 1, 1))

    def clean(y: Tensor, sigma: Tensor) -> Tensor:
        return y * torch.exp(-sigma).view(-1, 1, 1, 1)

    noise = sample_noise(range(4), SHAPE, seed=0)
    found, expected = (euler(velocity_from_denoiser(d), noise, GRID) for d in (denoiser, clean))
    torch.testing.assert_close(found, expected)


def test_the_check_of_a_first_try_says_so_and_changes_nothing() -> None:
    def rescales(x: Tensor, t: Tensor) -> Tensor:
        return x.mul_(2).sub_(1)

    def shifts_time(x: Tensor, t: Tensor) -> Tensor:
        t.mul_(999)
        return x + t.view(-1, 1, 1, 1)

    for velocity, what in ((rescales, "states"), (shifts_time, "times")):
        noise = sample_noise(range(4), SHAPE, seed=0)
        with pytest.raises(InputError, match=f"velocity: changes its {what} in place; a network"):
            checked_velocity(velocity)(noise, torch.full((4,), 0.5))
        assert torch.equal(noise, sample_noise(range(4), SHAPE, seed=0))


def test_the_loss_of_a_teacher_leaves_its_times() -> None:
    data, noise, t = torch.ones(4, 2), torch.zeros(4, 2), torch.rand(4)
    before = t.clone()
    flow_matching_loss(lambda x, t: x.mul_(t.mul_(999).view(-1, 1)), data, noise, t)
    assert torch.equal(t, before)
    assert torch.equal(data, torch.ones(4, 2))
    assert torch.equal(noise, torch.zeros(4, 2))

"""The schedulers of diffusers on flows whose ends are known, and against our own solvers."""

import pytest
import torch
from torch import Tensor

from boss_core.ode.solvers import ab2, euler
from boss_core.ode.timesteps import shifted, uniform
from boss_core.ode.velocity import CountedVelocity
from studies.peers_methods import ADAMS_BASHFORTH, ipndm
from studies.peers_schedulers import (
    Make,
    deis,
    dpm_solver,
    drive,
    flow_match_euler,
    flow_match_heun,
    unipc,
)

SPREAD, POINT = 0.4, 0.7
MAKES: dict[str, Make] = {
    "unipc_2": unipc(2),
    "unipc_3": unipc(3),
    "dpm_solver_2m": dpm_solver(2),
    "dpm_solver_3m": dpm_solver(3),
    "deis_3_to_the_end": deis(3, to_the_end=True),
    "flow_match_euler_1": flow_match_euler(1.0),
    "flow_match_euler_3": flow_match_euler(3.0),
    "flow_match_heun": flow_match_heun,
}


def noise() -> Tensor:
    return torch.randn(6, 1, 2, 2, generator=torch.Generator().manual_seed(0))


def to_a_point(x: Tensor, t: Tensor) -> Tensor:
    """The velocity to data that is one image: its lines are straight, whatever the solver."""
    return (POINT - x) / (1 - t.view(-1, 1, 1, 1))


def to_a_gaussian(x: Tensor, t: Tensor) -> Tensor:
    """To data of mean 0 and deviation SPREAD: noise z ends at SPREAD z, on a curve between."""
    t = t.view(-1, 1, 1, 1)
    variance = (1 - t) ** 2 + (SPREAD * t) ** 2
    return x * (t * SPREAD**2 - (1 - t)) / variance


def nonlinear(x: Tensor, t: Tensor) -> Tensor:
    return torch.sin(3 * x) - t.view(-1, 1, 1, 1) * x


@pytest.mark.parametrize("budget", [2, 3, 4, 7])
@pytest.mark.parametrize("name", MAKES)
def test_of_one_image_the_end_is_that_image(name: str, budget: int) -> None:
    """Sign, time and noise level are right, or it is missed; evaluations are as many as paid."""
    counted = CountedVelocity(to_a_point)
    end = drive(MAKES[name], budget, counted, noise())
    assert counted.nfe == budget
    # Those that begin at 0.999 take the noise for 0.999 of it; two end at 0.001 or 0.0001.
    assert (end - POINT).abs().max() < 4e-3


@pytest.mark.parametrize("budget", [3, 4, 8])
def test_deis_as_it_comes_leaves_noise_in_the_image(budget: int) -> None:
    """Its last level is repeated: what stays is that level's share of the noise."""
    z = noise()
    left = 0.999 / budget
    end = drive(deis(3), budget, to_a_point, z)
    assert torch.allclose(end, (1 - left) * POINT + left * z, atol=4e-3)


@pytest.mark.parametrize(
    ("name", "steps", "off"),
    [
        ("unipc_2", 32, 4e-3), ("unipc_3", 32, 4e-3), ("dpm_solver_2m", 32, 1e-2),
        ("dpm_solver_3m", 32, 1e-2), ("deis_3_to_the_end", 32, 2e-2),
        ("flow_match_euler_1", 64, 3e-2), ("flow_match_euler_3", 64, 6e-2),
        ("flow_match_heun", 64, 3e-3),
    ],
)  # fmt: skip
def test_many_steps_reach_the_end_of_a_curved_flow(name: str, steps: int, off: float) -> None:
    z = noise()
    end = drive(MAKES[name], steps, to_a_gaussian, z)
    assert (end - SPREAD * z).abs().max() < off
    few = drive(MAKES[name], 4, to_a_gaussian, z)
    assert (end - SPREAD * z).abs().max() < (few - SPREAD * z).abs().max() / 3


@pytest.mark.parametrize("budget", [3, 4, 8])
def test_flow_match_euler_is_euler(budget: int) -> None:
    z = noise()
    for shift, times in ((1.0, uniform(budget)), (3.0, shifted(budget, 3.0))):
        expected = euler(nonlinear, z, times)
        assert torch.allclose(
            drive(flow_match_euler(shift), budget, nonlinear, z), expected, atol=1e-5
        )


@pytest.mark.parametrize("budget", [2, 4, 6])
def test_flow_match_heun_is_heun_up_to_its_last_level(budget: int) -> None:
    """By the trapezoid rule's own formula, from noise level 1 to 0.001."""
    z, steps = noise(), budget // 2
    h, x = 0.999 / steps, z
    for k in range(steps):
        t = torch.full((len(x),), k * h)
        v = nonlinear(x, t)
        x = x + h / 2 * (v + nonlinear(x + h * v, t + h))
    # It divides a difference by that last level: float32 leaves four digits.
    assert torch.allclose(drive(flow_match_heun, budget, nonlinear, z), x, atol=2e-4)


def test_unipc_and_dpm_solver_begin_alike_and_differ_with_steps() -> None:
    """Of two steps the orders 2 and 3 have no use for a third; of six they do."""
    z = noise()
    for of in (unipc, dpm_solver):
        two, three = (drive(of(order), 2, nonlinear, z) for order in (2, 3))
        assert torch.equal(two, three)
        assert not torch.allclose(
            *(drive(of(order), 6, nonlinear, z) for order in (2, 3)), atol=1e-5
        )


def test_ipndm_of_order_2_on_equal_steps_is_ab2() -> None:
    z = noise()
    expected = ab2(nonlinear, z, uniform(6))
    assert torch.allclose(ipndm(2, uniform(6), nonlinear, z), expected, atol=1e-6)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_coefficients_integrate_polynomials(order: int) -> None:
    """A step of order m is exact where the velocity is t^p, p < m: nodes 0, -1, ... to 1."""
    for power in range(order):
        nodes = [float(-j) ** power if j or power else 1.0 for j in range(order)]
        found = sum(w * v for w, v in zip(ADAMS_BASHFORTH[order], nodes, strict=True))
        assert found == pytest.approx(1 / (power + 1))


def test_ipndm_starts_with_lower_orders() -> None:
    """Four steps of v = t^3, by hand: 0, then orders 2, 3 and 4."""
    z, h = noise(), 0.25
    v = [(k * h) ** 3 for k in range(4)]
    moved = h * (
        v[0] + (3 * v[1] - v[0]) / 2 + (23 * v[2] - 16 * v[1] + 5 * v[0]) / 12
        + (55 * v[3] - 59 * v[2] + 37 * v[1] - 9 * v[0]) / 24
    )  # fmt: skip
    end = ipndm(4, uniform(4), lambda x, t: t.view(-1, 1, 1, 1).expand_as(x) ** 3, z)
    assert torch.allclose(end, z + moved, atol=1e-6)

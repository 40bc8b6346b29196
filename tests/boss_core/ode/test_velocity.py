"""Networks of other libraries as velocities, and velocities that do not hold."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from boss_core.costs.matrix import estimate_cost_matrix
from boss_core.errors import InputError
from boss_core.ode.noise import sample_noise
from boss_core.ode.solvers import euler, rk45
from boss_core.ode.timesteps import quadratic, uniform
from boss_core.ode.velocity import check_repeats, checked_velocity, scalar_time, time_first
from tests.helpers.solvers import solvers


class Mlp(nn.Module):
    """A network as flow-matching tutorials write them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 32), nn.SiLU(), nn.Linear(32, 2))

    def forward(self, x: Tensor, t: Tensor, label: float = 0.0) -> Tensor:
        t = t.reshape(-1, 1).expand(len(x), 1)
        return self.layers(torch.cat([x, t, torch.full_like(t, label)], dim=1))


def test_flow_matchings_wrapper_is_a_velocity_and_its_solver_agrees() -> None:
    from flow_matching.solver import ODESolver
    from flow_matching.utils import ModelWrapper

    wrapped = ModelWrapper(Mlp())
    noise = sample_noise(range(7), (2,), seed=0)
    times = quadratic(6)
    expected = ODESolver(wrapped).sample(
        noise, step_size=None, method="euler", time_grid=torch.tensor(times).float(), label=0.3
    )
    found = euler(partial(wrapped, label=0.3), noise, times)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_time_first_and_one_time_for_all() -> None:
    network, x = Mlp(), sample_noise(range(5), (2,), seed=0)
    expected = euler(network, x, uniform(4))
    assert torch.equal(euler(time_first(lambda t, x: network(x, t)), x, uniform(4)), expected)

    def scalar(x: Tensor, t: Tensor) -> Tensor:
        assert t.shape == ()
        return network(x, t)

    assert torch.equal(euler(scalar_time(scalar), x, uniform(4)), expected)
    with pytest.raises(InputError, match=r"t: 0\.25 to 0\.5 in one batch"):
        scalar_time(scalar)(x[:2], torch.tensor([0.25, 0.5]))


@pytest.mark.parametrize(
    ("velocity", "says"),
    [
        (lambda x, t: x[:, :1], r"shape \(3, 1\) for states of shape \(3, 2\)"),
        (lambda x, t: x.double(), r"torch\.float64 for states of torch\.float32"),
        (lambda x, t: x.bfloat16(), r"torch\.bfloat16 for states of torch\.float32"),
        (lambda x, t: torch.where(x > 1, torch.nan, x), r"not finite at t = 0 \(sample 1\)"),
        (lambda x, t: x.to("meta"), r"returned a tensor on meta for states on cpu"),
        (lambda x, t: None, r"velocity: returned None; a tensor of the shape of its states"),
        (lambda x, t: (x, t), r"velocity: returned a tuple of 2; a tensor"),
        (lambda x, t: {"sample": x}, r"velocity: returned a dict with 'sample'; a tensor"),
    ],
)
def test_a_velocity_that_does_not_hold_is_refused_at_its_first_call(velocity, says: str) -> None:
    x = torch.tensor([[0.0, 1.0], [1.0, 2.0], [0.0, 0.0]])
    with pytest.raises(InputError, match=says):
        euler(checked_velocity(velocity), x, uniform(3))
    holds = checked_velocity(lambda x, t: x * t.view(-1, 1))
    assert torch.equal(holds(x, torch.ones(3)), x)


@pytest.mark.parametrize("solver", [*solvers().values(), rk45])
def test_every_solver_refuses_what_is_no_velocity(solver) -> None:
    x = torch.zeros(3, 2)
    for returned in (None, (x, x), x[:, :1], x.double()):
        with pytest.raises(InputError, match="velocity: returned "):
            solver(lambda x, t, v=returned: v, x, uniform(3))


def test_the_search_refuses_another_dtype() -> None:
    with pytest.raises(InputError, match=r"returned torch\.bfloat16 for states of torch\.float32"):
        estimate_cost_matrix(lambda x, t: x.bfloat16(), torch.zeros(4, 3), uniform(4), batch_size=4)


def test_a_velocity_is_of_each_state_and_the_time_alone() -> None:
    torch.manual_seed(0)
    dropped = nn.Sequential(Mlp().layers[:2], nn.Dropout(0.05), nn.Linear(32, 2))
    normed = nn.Sequential(nn.Linear(4, 32), nn.BatchNorm1d(32), nn.SiLU(), nn.Linear(32, 2))

    def velocity(layers: nn.Module):
        return lambda x, t: layers(torch.cat([x, t[:, None], t[:, None]], dim=1))

    x = sample_noise(range(9), (2,), seed=0)
    for layers in (dropped, normed):
        with pytest.raises(InputError, match=r"velocity: \d+% apart at the same states and times"):
            check_repeats(velocity(layers), x)
        check_repeats(velocity(layers.eval()), x)
    with pytest.raises(InputError, match="random, or in training mode"):
        check_repeats(lambda x, t: x + 0.1 * torch.randn_like(x), x[:1])
    narrow = Mlp().bfloat16()
    for right in (
        Mlp(),
        lambda x, t: torch.zeros_like(x),
        lambda x, t: narrow(x.bfloat16(), t.bfloat16()).float(),
        lambda x, t: x.mul_(2),
        lambda x, t: partial(Mlp(), label=0.5)(x, t),
    ):
        for count in (1, 2, 9):
            check_repeats(right, x[:count])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_velocity_repeats_in_its_own_dtype(dtype: torch.dtype) -> None:
    check_repeats(lambda x, t: x * t[:, None], torch.ones(4, 2, dtype=dtype))

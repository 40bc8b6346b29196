"""Students of networks in closed form: nearer to their teacher than it is to itself in as many
steps, whatever way the network is called."""

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from boss_core.checkpoints.student import Student, load_student
from boss_core.errors import InputError
from boss_core.ode.noise import EVALUATION, NoiseSource
from boss_core.ode.schedule import Schedule
from boss_core.ode.solvers import SOLVERS, euler
from boss_core.ode.timesteps import uniform
from boss_core.ode.velocity import with_labels
from boss_core.straightening.rollout import roll_out
from boss_core.straightening.segments import Segments
from boss_core.straightening.straighten import (
    StraightenSettings,
    distance,
    ends,
    straighten,
    teacher_velocity,
)
from tests.helpers.mixture import mixture_velocity, rotated_velocity
from tests.helpers.own_network import CONVENTIONS, Plain, training
from tests.helpers.refusals import refused

SOURCE = NoiseSource((2,), seed=3)
HELD_OUT = range(256)


def steps(number: int, solver: str = "euler") -> Schedule:
    return Schedule(timesteps=tuple(uniform(number)), solver=solver, objective="uniform")


def settings(rank: int | None = None, **change: object) -> StraightenSettings:
    return StraightenSettings(training(**change), rank, trajectories=400, grid=40)


def apart(velocity, schedule: Schedule, teacher=mixture_velocity, source=SOURCE) -> float:
    """How far samples of the schedule are from those of the closed form in 40 steps."""

    def on(schedule: Schedule, of) -> Tensor:
        solve = partial(SOLVERS[schedule.solver], timesteps=schedule.timesteps)
        return ends(of, solve, source, HELD_OUT, EVALUATION, 100)

    return distance(on(schedule, velocity), on(steps(40), teacher))


@pytest.fixture(scope="module")
def plain() -> Student:
    (found,) = straighten(Plain(), [steps(2)], SOURCE, settings())
    return found


@pytest.mark.parametrize("convention", [name for name in CONVENTIONS if name != "plain"])
def test_a_student_is_that_of_the_plain_network_in_every_convention(
    convention: str, plain: Student
) -> None:
    make, velocity = CONVENTIONS[convention]
    network = make()
    before = copy.deepcopy(network.state_dict())
    (student,) = straighten(network, [steps(2)], SOURCE, settings(), velocity=velocity)
    assert apart(mixture_velocity, steps(2)) > 2 * apart(student.velocity, steps(2))
    # Of the same noise and batches: the same but for rounding, which Adam makes more of.
    noise, _ = SOURCE.draw(HELD_OUT, EVALUATION)
    near = distance(student.sample(noise), plain.sample(noise))
    assert near < 1e-3 * apart(mixture_velocity, steps(2))
    # What was given stays as it was.
    assert network.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(p.requires_grad and p.grad is None for p in network.parameters())


@pytest.mark.parametrize(("rank", "solver"), [(None, "euler"), (8, "euler"), (None, "ab2")])
def test_several_budgets_from_one_rollout(rank: int | None, solver: str) -> None:
    schedules = [steps(2, solver), steps(4, solver)]
    found = straighten(
        Plain(), schedules, SOURCE, settings(rank, iterations=200, learning_rate=1e-2)
    )
    for student, schedule in zip(found, schedules, strict=True):
        assert student.schedule == schedule
        assert apart(mixture_velocity, schedule) > 1.4 * apart(student.velocity, schedule)
        # A tenth of the trajectories was not trained on, and says the same.
        assert 0 < student.curve[-1]["validation_loss"] < 2 * student.curve[-1]["loss"]
        if rank is not None:
            start, trained = Plain().state_dict(), student.network.state_dict()
            for name in ("layers.0", "layers.2", "layers.4"):
                change = trained[f"{name}.weight"] - start[f"{name}.weight"]
                assert 0 < torch.linalg.matrix_rank(change, rtol=1e-4) <= rank
                assert torch.equal(trained[f"{name}.bias"], start[f"{name}.bias"])


def test_one_step_of_a_linear_flow_by_hand() -> None:
    """Over dx/dt = a x a step from noise has to go along x_1 - x_0 = (prod(1 + a h) - 1) x_0, and
    the least squares of a network c x find just that c."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.tensor(-1.3))

        def forward(self, x, t):
            return self.a * x

    chosen = settings(iterations=300, learning_rate=0.02)
    (student,) = straighten(Scaled(), [steps(1)], SOURCE, chosen)
    expected = (1 - 1.3 / 40) ** 40 - 1
    assert float(student.network.a) == pytest.approx(expected, abs=1e-3)


def test_labels() -> None:
    """Of three classes, of which the first never comes."""
    source = NoiseSource((2,), 3, classes=3, frequencies=(0.0, 1.0, 3.0))
    chosen = settings(learning_rate=1e-2)
    (student,) = straighten(Plain(labels=True), [steps(2)], source, chosen)
    before = apart(rotated_velocity, steps(2), rotated_velocity, source)
    after = apart(student.velocity, steps(2), rotated_velocity, source)
    assert before > 1.4 * after
    noise, labels = source.draw(HELD_OUT, EVALUATION)
    assert set(labels.tolist()) == {1, 2}
    by_hand = euler(with_labels(student.velocity, labels), noise, uniform(2))
    assert torch.equal(student.sample(noise, labels), by_hand)


def test_parameters_that_are_frozen_stay() -> None:
    network = Plain()
    network.layers[0].requires_grad_(False)
    (student,) = straighten(network, [steps(2)], SOURCE, settings(iterations=3))
    assert torch.equal(student.network.layers[0].weight, network.layers[0].weight)
    assert not torch.equal(student.network.layers[2].weight, network.layers[2].weight)


class Transformer(nn.Module):
    """Of layers that are otherwise in training: dropout, running statistics, and torch's own
    Transformer layer, which has a fast path for evaluation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True)

    def forward(self, x, t):
        seen = self.norm(self.first(torch.cat([x, t[:, None]], dim=1)))
        return self.last(self.block(seen[:, None])[:, 0]) - x


@pytest.mark.parametrize("rank", [None, 2])
def test_the_network_is_trained_as_it_samples(rank: int | None, tmp_path: Path) -> None:
    """So that the loss on trajectories apart is that of the student, as it is loaded."""
    chosen = settings(rank, iterations=40, learning_rate=1e-2)
    (student,) = straighten(Transformer(), [steps(2)], SOURCE, chosen, folder=tmp_path)
    student.save(tmp_path / "out")
    loaded = load_student(tmp_path / "out", Transformer())
    for name, buffer in loaded.network.named_buffers():
        assert torch.equal(buffer, dict(Transformer().named_buffers())[name])
    called, source = teacher_velocity(Transformer().eval(), SOURCE)
    rollout = roll_out(called, [steps(2)], source, trajectories=400, grid=40, batch_size=100)
    segments = Segments.of(rollout.states, rollout.knots, rollout.schedules[0])
    with torch.no_grad():
        losses = {
            name: sum(segments.segment_losses(velocity, range(360, 400), 64)) / 2
            for name, velocity in (("student", loaded.velocity), ("teacher", called))
        }
    assert student.curve[-1]["validation_loss"] == pytest.approx(losses["student"], rel=1e-3)
    assert losses["student"] < 0.9 * losses["teacher"]


class Random(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x, t):
        return torch.nn.functional.dropout(self.layer(x), 0.5, training=True)


def test_what_cannot_be_straightened() -> None:
    def with_network(network, *, number=2, velocity=None, source=SOURCE):
        return lambda: straighten(network, [steps(number)], source, settings(), velocity=velocity)

    refused(with_network(Plain(), number=41), "41 steps on a grid of 40; fewer needed")
    late = Schedule(timesteps=(0.4, 1.0), indices=(0, 1))
    for schedule, why in (
        (late, "begins at t = 0.4; 0 needed"),
        (steps(2, "heun"), "for solver heun; euler or ab2"),
    ):
        refused(partial(straighten, Plain(), [schedule], SOURCE, settings()), why)
    refused(with_network(Random()), "velocity:", "apart at the same states and times")
    refused(with_network(nn.Identity()), "network: Identity without weights")
    refused(with_network(Plain().bfloat16()), "layers.0.weight is torch.bfloat16; float32 needed")
    infinite = lambda net, x, t: net(x, t) / 0.0  # noqa: E731
    refused(with_network(Plain(), velocity=infinite), "velocity: not finite at t = 0.5")
    narrow = lambda net, x, t: net(x, t)[:, :1]  # noqa: E731
    refused(with_network(Plain(), velocity=narrow), "velocity: returned shape (4, 1) for states")
    refused(
        with_network(Plain(), source=NoiseSource((2,), 0, classes=0)), "one for each of 0 classes"
    )
    other = Plain()
    refused(
        with_network(Plain(), velocity=lambda net, x, t: other(x, t)),
        "no parameter has a gradient at step 0",
    )


def test_goes_on_from_a_folder_and_refuses_that_of_another_run(tmp_path: Path) -> None:
    def run(velocity=None, network=None, chosen=None):
        return straighten(
            network or Plain(), [steps(2)], SOURCE, chosen or settings(iterations=20),
            velocity=velocity, folder=tmp_path,
        )[0]  # fmt: skip

    calls = []

    def counted(net, x, t):
        calls.append(len(x))
        return net(x, t)

    first = run(counted)
    rolled_out = sum(calls)
    calls.clear()
    again = run(counted)
    # The first few trajectories are compared, and the training is done once more.
    assert sum(calls) < rolled_out - 40 * 300
    assert torch.equal(again.network.layers[2].weight, first.network.layers[2].weight)
    refused(lambda: run(lambda net, x, t: 0.5 * net(x, t)), "a network that was called otherwise")
    network = Plain()
    nn.init.ones_(network.layers[4].bias)
    refused(lambda: run(network=network), "the trajectories of another run (network differ)")
    with pytest.raises(InputError, match="shape"):
        run(chosen=StraightenSettings(training(), trajectories=300, grid=40))

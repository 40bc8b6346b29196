"""Straightening at the scheduler, against the same written from a network alone."""

from typing import Any

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed (pip install .[diffusers])")

from boss_core.errors import InputError
from boss_core.interop.diffusers_pipelines import sample_generators
from boss_core.interop.pipeline_lora import add_lora, freeze
from boss_core.interop.teacher_forcing import KnotStates, straighten_call, teacher_states
from boss_core.ode.solvers import ab2, euler
from boss_core.ode.timesteps import uniform
from tests.helpers import odd_pipelines as odd
from tests.helpers import tiny_pipelines as tiny
from tests.helpers.pipeline_costs import noise

# Times that float32 holds: see test_diffusers_pipelines.
GRID, KNOTS = uniform(8), (0, 2, 3, 8)
ROWS = range(5)


def call(guidance: float) -> dict[str, Any]:
    return tiny.sd3_prompts(ROWS, guidance) | {"generator": sample_generators(ROWS, 7)}


@pytest.fixture(scope="module")
def teacher() -> tuple[Any, KnotStates]:
    pipeline = tiny.sd3()
    states, evaluations = teacher_states(pipeline, GRID, KNOTS, call(4.0))
    assert evaluations.tolist() == [2.0] * 8
    return pipeline, states


def test_the_states_are_those_of_the_teacher(teacher: tuple[Any, KnotStates]) -> None:
    """Against Euler's steps on the guided velocity, written from the network."""
    pipeline, states = teacher
    kept: dict[int, torch.Tensor] = {}
    start = noise(ROWS, 4, 8, 8)
    with torch.no_grad():
        euler(
            tiny.sd3_velocity(pipeline.transformer, call(4.0)),
            start,
            GRID,
            observer=lambda k, x, v: kept.update({k: x}),
        )
    (found,) = states.states
    expected = torch.stack([kept[k] for k in KNOTS])
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-5


@pytest.mark.parametrize("solver", ["euler", "ab2"])
def test_losses_and_gradients_are_those_of_the_formula(
    teacher: tuple[Any, KnotStates], solver: str
) -> None:
    """What the network has to say at each knot for the solver to pass through the next one: for
    Euler the chord of eq. 9, for two steps solved from the step's weights by hand."""
    pipeline, states = teacher
    times = GRID[list(KNOTS)]
    network = pipeline.transformer
    freeze(pipeline)
    network.proj_out.weight.requires_grad_(True)
    backward: list[int] = []
    losses = straighten_call(pipeline, times, solver, call(1.0), states, backward.append)
    gradient = network.proj_out.weight.grad
    network.proj_out.weight.grad = None

    velocity = tiny.sd3_velocity(network, call(1.0))
    (x,) = states.states
    targets, expected = [], []
    for k in range(3):
        step = times[k + 1] - times[k]
        target = (x[k + 1] - x[k]) / step
        if solver == "ab2" and k:
            half = step / (2 * (times[k] - times[k - 1]))
            target = (target + half * targets[-1]) / (1 + half)
        targets.append(target)
        t = torch.full((len(ROWS),), float(times[k]))
        expected.append((velocity(x[k], t) - target).square().mean())
    (sum(expected) / 3).backward()
    assert backward == [0, 1, 2]
    assert losses.tolist() == pytest.approx([loss.item() for loss in expected], rel=1e-4)
    assert (gradient - network.proj_out.weight.grad).norm() < 1e-4 * gradient.norm()
    network.proj_out.weight.grad = None
    freeze(pipeline)


def test_a_teacher_that_is_straight_has_nothing_to_learn() -> None:
    """The student's own states in its own steps: by either solver no loss is left."""
    pipeline = tiny.sd3()
    times = GRID[list(KNOTS)]
    velocity = tiny.sd3_velocity(pipeline.transformer, call(1.0))
    for solver, walk in (("euler", euler), ("ab2", ab2)):
        kept: list[torch.Tensor] = []
        with torch.no_grad():
            start = noise(ROWS, 4, 8, 8)
            walk(velocity, start, times, observer=lambda k, x, v, kept=kept: kept.append(x))
        own = KnotStates((torch.stack(kept),))
        losses = straighten_call(pipeline, times, solver, call(1.0), own, None)
        assert float(losses.max()) < 1e-9


def test_two_states_are_one_loss() -> None:
    """LTX-2 steps images and sound with a copy of its scheduler each: the mean is over both."""
    pipeline, rows = odd.ltx2(), range(2)
    prompts = odd.ltx2_prompts(rows) | {"generator": sample_generators(rows, 3)}
    states, _ = teacher_states(pipeline, uniform(4), (0, 2, 4), prompts)
    assert len(states.states) == 2
    freeze(pipeline)
    weights = add_lora(pipeline, 1, seed=0)
    off = {"guidance_scale": 1.0, "audio_guidance_scale": 1.0}
    prompts |= off | {"generator": sample_generators(rows, 3)}
    losses = straighten_call(
        pipeline, uniform(2), "euler", prompts, states, lambda k: weights.collect()
    )
    assert losses.shape == (2,)
    assert bool((losses > 0).all())
    names = list(weights.there)
    of_sound = [w.grad for n, w in zip(names, weights.weights, strict=True) if "audio" in n]
    assert any(g is not None and g.abs().max() > 0 for g in of_sound)
    # Where the sound is as far off as can be, so is the mean, by its share of the elements.
    image, sound = states.states
    away = torch.tensor([0.0, 8.0, 8.0]).view(3, *[1] * (sound.ndim - 1))
    apart = KnotStates((image, sound + away))
    prompts |= {"generator": sample_generators(rows, 3)}
    more = straighten_call(pipeline, uniform(2), "euler", prompts, apart, None)
    share = sound[0].numel() / (image[0].numel() + sound[0].numel())
    assert float(more[0]) == pytest.approx(share * 16.0**2, rel=0.2)


def test_a_frame_that_is_given_is_not_learned() -> None:
    """Wan 2.2 5B puts an image in the place of the first frame: what is said there is discarded."""
    pipeline, rows = odd.wan_i2v(), range(2)

    def prompts() -> dict[str, Any]:
        return odd.wan_i2v_prompts(rows) | {"generator": sample_generators(rows, 3)}

    states, _ = teacher_states(pipeline, uniform(4), (0, 2, 4), prompts())
    assert states.seen is not None
    hidden = ~states.seen
    assert 0 < int(hidden.sum()) < hidden.numel()
    losses = straighten_call(pipeline, uniform(2), "euler", prompts(), states, None)
    (x,) = states.states
    away = torch.tensor([0.0, 9.0, 9.0]).view(3, *[1] * (x.ndim - 1))
    moved = KnotStates((x + hidden * away,))
    same = KnotStates(moved.states, states.seen)
    again = straighten_call(pipeline, uniform(2), "euler", prompts(), same, None)
    assert float(again[0]) == pytest.approx(float(losses[0]), rel=1e-5)
    counted = straighten_call(pipeline, uniform(2), "euler", prompts(), moved, None)
    assert float(counted[0]) > 2 * float(losses[0])


def test_what_cannot_be_taught_is_refused(teacher: tuple[Any, KnotStates]) -> None:
    pipeline, states = teacher
    times = GRID[list(KNOTS)]
    freeze(pipeline)
    with pytest.raises(InputError, match="no gradient reaches its velocity"):
        straighten_call(pipeline, times, "euler", call(1.0), states, lambda k: None)
    others = call(1.0) | {"generator": sample_generators(ROWS, 4)}
    with pytest.raises(InputError, match="starts from other noise than the teacher"):
        straighten_call(pipeline, times, "euler", others, states, None)
    two = KnotStates((*states.states, *states.states))
    with pytest.raises(InputError, match="steps its states in another order"):
        straighten_call(pipeline, times, "euler", call(1.0), two, None)
    with pytest.raises(InputError, match="heun; euler or ab2 or multistep needed"):
        straighten_call(pipeline, times, "heun", call(1.0), states, None)
    assert type(pipeline.scheduler).__name__ == "FlowMatchEulerDiscreteScheduler"

"""Weights fitted at a pipeline's scheduler, against those fitted to its network alone."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed (pip install .[diffusers])")

from boss_core.costs.fit import fit_weights
from boss_core.errors import InputError
from boss_core.interop.diffusers_pipelines import sample_generators, sample_latents
from boss_core.interop.pipeline_fit import fit_pipeline_weights
from boss_core.interop.teacher_forcing import teacher_states
from boss_core.ode.solvers import multistep
from boss_core.ode.timesteps import uniform
from tests.helpers import tiny_pipelines as tiny
from tests.helpers.pipeline_costs import noise

# Times that float32 holds: see test_diffusers_pipelines.
GRID, KNOTS = uniform(8), (0, 2, 3, 6, 8)
TIMES = GRID[list(KNOTS)]
PARTS = (range(7), range(7, 12))
MOCHI_TIMES = GRID[[0, 3, 8]]


def call(rows: range) -> dict[str, Any]:
    return tiny.sd3_prompts(rows, 4.0) | {"generator": sample_generators(rows, 7)}


@pytest.mark.parametrize("order", [2, 3])
def test_they_are_those_of_the_network(order: int) -> None:
    pipeline = tiny.sd3()
    network = pipeline.transformer
    evaluated: list[int] = []
    handle = network.register_forward_hook(lambda _, args, out: evaluated.append(len(out[0])))

    def calls() -> Iterator[dict[str, Any]]:
        return map(call, PARTS)

    teachers = [teacher_states(pipeline, GRID, KNOTS, each)[0] for each in calls()]
    own = pipeline.scheduler
    evaluated.clear()
    counted: list[int] = []
    found = fit_pipeline_weights(
        pipeline, TIMES, calls, teachers, order=order, on_call=counted.append
    )
    handle.remove()
    assert pipeline.scheduler is own
    assert sum(counted) == 12 * (2 + 3 + 4)  # passes of 2, 3 and 4 steps
    assert sum(evaluated) == 2 * sum(counted)  # both halves of the guidance

    states = torch.cat([of.states[0] for of in teachers], dim=1)
    velocity = tiny.sd3_velocity(network, call(range(12)))
    expected = fit_weights(velocity, states, TIMES, order=order, batch_size=12)
    for a, b in zip(found.weights, expected.weights, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3)
    for a, b in zip(found.standard_error, expected.standard_error, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3)
    assert found.error == pytest.approx(expected.error, rel=1e-3)
    # And the pipeline samples with them as the network does.
    ends = sample_latents(
        pipeline, TIMES, [call(range(12))], solver="multistep", weights=found.weights
    )
    with torch.no_grad():
        wanted = multistep(
            "multistep", velocity, noise(range(12), 4, 8, 8), TIMES, weights=found.weights
        )
    torch.testing.assert_close(ends, wanted, rtol=0, atol=1e-4)


def test_levels_that_are_of_the_data_and_one_step() -> None:
    """Mochi's network takes t in place of 1 - t: a fit must not mend a wrong sign."""
    pipeline = tiny.mochi()

    def calls() -> Iterator[dict[str, Any]]:
        rows = range(10)
        return iter([tiny.video_prompts(rows) | {"generator": sample_generators(rows, 3)}])

    knots = (0, 3, 8)
    teachers = [teacher_states(pipeline, GRID, knots, each)[0] for each in calls()]
    found = fit_pipeline_weights(pipeline, MOCHI_TIMES, calls, teachers)
    ends = sample_latents(pipeline, MOCHI_TIMES, calls(), solver="multistep", weights=found.weights)
    euler, ab2 = (
        sample_latents(pipeline, MOCHI_TIMES, calls(), solver=s) for s in ("euler", "ab2")
    )
    fine = sample_latents(pipeline, GRID, calls())
    error, of_euler, of_ab2 = (float((x - fine).square().sum() / 10) for x in (ends, euler, ab2))
    assert error < min(of_euler, of_ab2)
    one = fit_pipeline_weights(
        pipeline, uniform(1), calls, [states.at((0, 2)) for states in teachers]
    )
    assert one.weights == ((1.0,),)


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(InputError, match="calls: of 0 samples; at least 10 needed"):
        fit_pipeline_weights(tiny.sd3(), TIMES, lambda: iter([]), [])

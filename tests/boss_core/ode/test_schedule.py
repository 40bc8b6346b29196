"""Schedules to JSON and back, and what is refused."""

import json

import numpy as np
import pytest
import torch

from boss_core.costs.matrix import estimate_cost_matrix
from boss_core.errors import InputError
from boss_core.interop.export import to_comfyui, to_diffusers, to_diffusers_fixed
from boss_core.ode.schedule import Schedule, from_sigmas
from boss_core.ode.solver_table import steps_of
from boss_core.ode.solvers import euler
from boss_core.search.choose import roll_out
from boss_core.straightening.segments import chord_weights, knot_states
from tests.helpers.linear import Linear


@pytest.fixture
def schedule() -> Schedule:
    return Schedule(
        timesteps=(0.0, 0.3, 1.0),
        indices=(0, 30, 100),
        objective="l2_squared",
        predicted_error=1.5,
        teacher_hash="abc",
        settings_hash="def",
    )


def test_json_both_ways(schedule: Schedule) -> None:
    assert Schedule.from_json(schedule.to_json()) == schedule
    assert schedule.nfe == 2
    assert schedule.sigmas == (1.0, 0.7, 0.0)


def test_times_survive_json_to_the_last_bit(schedule: Schedule) -> None:
    exact = schedule.model_copy(update={"timesteps": (0.0, 0.1 + 0.2, 1.0)})
    assert Schedule.from_json(exact.to_json()).timesteps[1] == 0.1 + 0.2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"timesteps": [0.0, 0.3, 0.9]}, "run from 0.0 to 0.9"),
        ({"indices": [0, 100]}, "2 indices for 3 timesteps"),
        ({"knot_stability": [1.0, 1.0]}, "knot_stability: 2 for 3 timesteps"),
        ({"indices": [0, 100, 30]}, "must increase"),
        ({"objektive": "l2"}, "objektive"),
        ({"timesteps": "soon"}, "timesteps"),
    ],
)
def test_what_is_not_a_schedule_is_refused(schedule: Schedule, change, says: str) -> None:
    text = json.dumps(json.loads(schedule.to_json()) | change)
    with pytest.raises(InputError, match=f"my.json.*{says}"):
        Schedule.from_json(text, "my.json")


def test_fitted_weights_both_ways_and_files_of_before_them(schedule: Schedule) -> None:
    fitted = schedule.model_copy(
        update={
            "solver": "multistep", "weights": ((1.0,), (1.5, -0.5)),
            "weights_error": ((0.0,), (0.1, 0.1)),
        }
    )  # fmt: skip
    assert Schedule.from_json(fitted.to_json()) == fitted
    assert fitted.step_weights == [(1.0,), (1.5, -0.5)]
    assert fitted.nfe == 2
    assert "weights" not in schedule.to_json()
    # A step of 0.7 after one of 0.3 extrapolates by 0.7 / 0.6 of the change.
    own = schedule.model_copy(update={"solver": "ab2"}).step_weights
    np.testing.assert_allclose(own[1], (1 + 7 / 6, -7 / 6))
    before = json.loads(schedule.to_json())
    assert before.pop("version") == 2
    assert Schedule.from_json(json.dumps(before)) == schedule
    assert Schedule.from_json(json.dumps(before | {"version": 1})) == schedule
    with pytest.raises(InputError, match=r"my.json: version: .*3 found; 1 to 2 can be read"):
        Schedule.from_json(json.dumps(before | {"version": 3}), "my.json")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"weights": None}, "weights: none found with solver multistep"),
        ({"solver": "ab2"}, "weights: some found with solver ab2"),
        ({"weights": [[1.0]]}, "weights: of 1 steps for 2 steps"),
        ({"weights": [[0.5, 0.5], [1.0]]}, "weights: 2 of step 0; 1 to 1 needed"),
        ({"weights": [[1.0], []]}, "weights: 0 of step 1"),
        ({"weights": [[1.0], [1.5, 0.5]]}, "weights: 1.5, 0.5 of step 1; weights that add up to 1"),
        ({"weights_error": [[0.0], [0.1]]}, "weights_error: of another form"),
    ],
)
def test_weights_that_cannot_be_are_refused(schedule: Schedule, change, says: str) -> None:
    steps = {"solver": "multistep", "weights": [[1.0], [1.5, -0.5]]}
    text = json.dumps(json.loads(schedule.to_json()) | steps | change)
    with pytest.raises(InputError, match=f"my.json.*{says}"):
        Schedule.from_json(text, "my.json")


def test_times_alone_are_a_schedule() -> None:
    steps = Schedule(timesteps=(0.4, 0.7, 1.0))
    assert (steps.indices, steps.objective, steps.nfe) == ((0, 1, 2), "given", 2)
    assert steps == from_sigmas((0.6, 0.3)) == Schedule.from_json('{"timesteps": [0.4, 0.7, 1]}')
    assert Schedule.from_json(steps.to_json()) == steps
    for wrong in ({}, {"timesteps": "soon"}, {"timesteps": 3}, {"timesteps": [0.0, "x"]}):
        with pytest.raises(InputError, match=r"my.json: timesteps[.01]*: "):
            Schedule.from_json(json.dumps(wrong), "my.json")


def test_evaluations_of_each_solver() -> None:
    times = {"timesteps": (0.0, 0.5, 1.0), "indices": (0, 1, 2), "objective": "uniform"}
    assert [Schedule(**times, solver=s).nfe for s in ("euler", "ab2", "heun")] == [2, 2, 4]
    assert (steps_of(4, "ab2"), steps_of(4, "heun")) == (4, 2)
    with pytest.raises(ValueError, match="budget: 3 evaluations; a positive multiple of 2"):
        steps_of(3, "heun")
    with pytest.raises(ValueError, match="solver: 'rk4'; euler, ab2, multistep, heun known"):
        steps_of(4, "rk4")


def test_counted_evaluations_are_the_nfe_and_files_without_them_stay() -> None:
    plain = Schedule(timesteps=(0.0, 0.4, 1.0), indices=(0, 2, 5), objective="l2_squared")
    assert "evaluations" not in plain.to_json()
    assert "evaluations" not in plain.model_dump(mode="json")
    assert plain.nfe == 2
    counted = plain.model_copy(update={"evaluations": 4.0})
    assert (counted.nfe, type(counted.nfe)) == (4, int)
    assert Schedule.from_json(counted.to_json()) == counted
    assert plain.model_copy(update={"evaluations": 3.5}).nfe == 3.5


def test_noise_levels_are_the_difference_of_the_decimals() -> None:
    times = tuple(round(k / 100, 2) for k in range(101))
    steps = Schedule(timesteps=times, indices=tuple(range(101)), objective="uniform")
    assert [repr(sigma) for sigma in steps.sigmas] == [repr(k / 100) for k in range(100, -1, -1)]
    assert max(abs(s - (1 - t)) for s, t in zip(steps.sigmas, times, strict=True)) <= 2**-53


def test_steps_may_begin_at_a_noise_level_below_1(schedule: Schedule) -> None:
    steps = Schedule(timesteps=(0.4, 0.7, 1.0), indices=(40, 70, 100), objective="uniform")
    assert Schedule.from_json(steps.to_json()) == steps
    assert steps.sigmas == (0.6, 0.3, 0.0)
    velocity = Linear()
    image, noise = torch.ones(2, 3), torch.zeros(2, 3)
    start = 0.4 * image + 0.6 * noise
    # By hand: x + 0.3 v(x, t), twice.
    middle = start + 0.3 * (-1.3 * start + 0.7 * 0.4)
    end = middle + 0.3 * (-1.3 * middle + 0.7 * 0.7)
    torch.testing.assert_close(euler(velocity, start, steps.timesteps), end)
    out, cpu = np.zeros((2, 1, 3), np.float32), torch.device("cpu")
    for from_noise in (
        lambda times: estimate_cost_matrix(velocity, start, times, batch_size=2),
        lambda times: roll_out(velocity, start, times, batch_size=2),
        lambda times: knot_states(velocity, times, [0], out, seed=0, batch_size=2, device=cpu),
        lambda times: chord_weights(times, "euler"),
    ):
        with pytest.raises(InputError, match=r"run from 0\.4 to 1\.0; 0 to 1 needed"):
            from_noise(steps.timesteps)
    assert "0.6, 0.3, 0.0" in to_comfyui(steps)
    said = (
        "# They begin at noise level 0.6, from an image: an image-to-image pipeline, with strength"
    )
    for text in (to_diffusers(steps), to_diffusers_fixed(steps)):
        assert "    0.6,\n    0.3,\n" in text
        assert said in text


def test_noise_levels_of_others_become_steps() -> None:
    for levels in ((1.0, 0.65, 0.2), (1, 0.65, 0.2, 0)):
        steps = from_sigmas(levels)
        assert steps.timesteps == (0.0, 0.35, 0.8, 1.0)
        assert (steps.sigmas, steps.nfe) == ((1.0, 0.65, 0.2, 0.0), 3)
    wrong = ((), (0,), (0.5, 0.7), (1.2, 0.5), (1.0, float("nan")), (0.5, 0.5), (1.0, -0.1))
    for levels in wrong:
        with pytest.raises(InputError, match=r"sigmas: .*; noise levels that fall, from 1 "):
            from_sigmas(levels)
    with pytest.raises(InputError, match=r"sigmas: 1, 0\.5, 1e-17, 0; noise levels that"):
        from_sigmas((1.0, 0.5, 1e-17, 0.0))


@pytest.mark.parametrize("last", [1e-9, 1e-12, 1e-17])
def test_a_last_noise_level_of_almost_zero_is_zero(last: float) -> None:
    assert from_sigmas((1.0, 0.5, last)) == from_sigmas((1.0, 0.5))


def test_steps_written_for_comfyui_read_back() -> None:
    for solver in ("euler", "ab2"):
        steps = Schedule(timesteps=(0.0, 0.35, 0.8, 1.0), solver=solver)
        levels = [float(level) for level in to_comfyui(steps).split(",")]
        assert from_sigmas(levels).timesteps == steps.timesteps


@pytest.mark.parametrize("evaluations", ["-3", "0", "Infinity", "NaN"])
def test_a_number_of_evaluations_that_is_none_is_refused(evaluations: str) -> None:
    text = f'{{"timesteps": [0, 0.5, 1], "evaluations": {evaluations}}}'
    with pytest.raises(InputError, match="schedule: evaluations: Input should be"):
        Schedule.from_json(text)

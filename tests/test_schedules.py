"""Schedules to JSON and back, and what is refused."""

import json

import pytest

from boss_core.errors import InputError
from boss_core.schedules import Schedule, steps_of


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


def test_evaluations_of_each_solver() -> None:
    times = {"timesteps": (0.0, 0.5, 1.0), "indices": (0, 1, 2), "objective": "uniform"}
    assert [Schedule(**times, solver=s).nfe for s in ("euler", "ab2", "heun")] == [2, 2, 4]
    assert (steps_of(4, "ab2"), steps_of(4, "heun")) == (4, 2)
    with pytest.raises(ValueError, match="budget: 3 evaluations; a positive multiple of 2"):
        steps_of(3, "heun")
    with pytest.raises(ValueError, match="solver: 'rk4'; euler, ab2, heun known"):
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

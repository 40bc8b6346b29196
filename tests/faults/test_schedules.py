"""Files of schedules: what is written comes back to the last bit, anything else is one line."""

import itertools
import json
import math
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from boss_core.ode.schedule import Schedule
from boss_core.ode.solver_table import SOLVERS
from tests.helpers.cases import cases, damaged, result_or_line

FLOATS = st.floats(allow_nan=False, allow_infinity=False)
HASHES = st.none() | st.text("0123456789abcdef", min_size=64, max_size=64)


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    """Any that a search, a fit or a user can make."""
    inner = draw(st.lists(st.floats(0, 1, exclude_min=True, exclude_max=True), max_size=9))
    start = draw(st.sampled_from([0.0, 0.0, 0.0, 1e-300, 0.4]))
    times = [start, *sorted({t for t in inner if t > start}), 1.0]
    # Values that a shorter way of writing would lose: any double is a time.
    steps = len(times) - 1
    jumps = draw(st.lists(st.integers(1, 50), min_size=steps, max_size=steps))
    solver = draw(st.sampled_from(list(SOLVERS)))
    fields: dict[str, Any] = {
        "timesteps": times,
        "indices": [sum(jumps[:k]) for k in range(steps + 1)],
        "solver": solver,
        "objective": draw(st.text(max_size=8)),
        "predicted_error": draw(st.none() | FLOATS),
        "standard_error": draw(st.none() | FLOATS),
        "teacher_hash": draw(HASHES),
        "settings_hash": draw(HASHES),
        "evaluations": draw(st.none() | st.floats(1e-3, 1e9)),
    }
    if draw(st.booleans()):
        fields["knot_stability"] = [draw(st.floats(0, 1)) for _ in times]
    if draw(st.booleans()):
        fields["held_out"] = {
            "winner": draw(st.text(max_size=5)), "gain": draw(FLOATS),
            "standard_error": draw(FLOATS), "rivals": draw(st.integers(0, 20)),
        }  # fmt: skip
    if SOLVERS[solver].fitted:
        weights = []
        for k in range(steps):
            before = draw(st.lists(st.floats(-2, 2), max_size=min(k, SOLVERS[solver].looks_back)))
            weights.append([1.0 - math.fsum(before), *before])
        fields["weights"] = weights
        if draw(st.booleans()):
            fields["weights_error"] = [[draw(st.floats(0, 1)) for _ in of] for of in weights]
    return Schedule(**fields)


@cases(24)
@given(schedules())
def test_what_is_written_comes_back_to_the_last_bit(schedule: Schedule) -> None:
    text = schedule.to_json()
    read = Schedule.from_json(text)
    assert read == schedule
    assert read.to_json() == text
    pairs = zip(read.timesteps, schedule.timesteps, strict=True)
    assert all(one.hex() == other.hex() for one, other in pairs)
    plain = json.loads(text)  # as another reader has it
    assert tuple(map(float, plain["timesteps"])) == schedule.timesteps


ODD: list[Any] = [
    None, True, False, -1, 0, 3, 0.5, 1e308, -1e308, 10**400, "", "0.5", "a\nb", "nan", [], [[]],
    {}, {"a\nb": 1}, [0, 0.5, 0.5, 1], [0, 0.7, 0.3, 1], [0.0, 1.5], [0, "x", 1],
    [0, True], [0, None, 1], math.nan, math.inf, -math.inf, [0, math.nan, 1], [[1e308] * 3] * 3,
    [[math.inf, -math.inf]] * 2, [[1], [0.5, 0.5], [1e308, 1e308, 1e308]], [[1], [True]], [[0.9]],
]  # fmt: skip


@st.composite
def mistaken(draw: st.DrawFn) -> str:
    """The JSON of a schedule, with a field or an entry of one changed, missing or unknown."""
    content = json.loads(draw(schedules()).to_json())
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from([*content, "weights", "a\nb", "sigmas"]))
        how = draw(st.sampled_from(["out", "odd", "entry", "shuffled", "longer"]))
        value = content.get(name)
        if how == "out":
            content.pop(name, None)
        elif how == "odd" or not isinstance(value, list) or not value:
            content[name] = draw(st.sampled_from(ODD))
        elif how == "entry":
            value[draw(st.integers(0, len(value) - 1))] = draw(st.sampled_from(ODD))
        elif how == "shuffled":
            content[name] = draw(st.permutations(value))
        else:
            value.append(draw(st.sampled_from([value[-1], 1, 2.0, 1e9])))
    return json.dumps(content)


def numbers(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [n for each in value.values() for n in numbers(each)]
    if isinstance(value, list | tuple):
        return [n for each in value for n in numbers(each)]
    return [value]


def taken(text: str | bytes) -> None:
    """Refused in a line, or a schedule whose values are those of the file."""
    schedule = result_or_line(lambda: Schedule.from_json(text, "my.json"), "my.json: ")
    if schedule is None:
        return
    content = json.loads(text)
    for name, value in content.items():
        if name == "version":
            continue
        found = json.loads(json.dumps(getattr(schedule, name), default=dict))
        assert found == value, name
        # 1 and true are equal to Python.
        kinds = [isinstance(n, bool) for n in numbers(value)]
        assert kinds == [isinstance(n, bool) for n in numbers(found)], name
    finite = [n for n in numbers(content) if isinstance(n, float)]
    assert all(map(math.isfinite, finite))
    times = schedule.timesteps
    assert times[-1] == 1.0
    assert all(a < b for a, b in itertools.pairwise(times))
    assert Schedule.from_json(schedule.to_json()) == schedule


@cases(30)
@given(mistaken())
@example('{"timesteps": [0, 1], "a\\nb": 1}')  # was two lines
@example('{"timesteps": [false, true]}')  # was taken for 0 and 1, as texts were
@example('{"timesteps": ["0", "1"]}')
@example('{"timesteps": [0, 1], "predicted_error": Infinity}')  # came back as null
@example(
    '{"timesteps": [0, 0.3, 0.6, 1], "solver": "multistep",'  # an OverflowError
    ' "weights": [[1], [0.5, 0.5], [1e308, 1e308, 1e308]]}'
)
def test_a_mistaken_schedule_is_one_line(text: str) -> None:
    taken(text)


@cases(30)
@given(st.data())
def test_a_damaged_schedule_is_one_line(data: st.DataObject) -> None:
    content = data.draw(schedules()).to_json().encode()
    damage = data.draw(damaged(content))
    schedule = result_or_line(lambda: Schedule.from_json(damage, "my.json"), "my.json: ")
    if schedule is not None:  # a digit is another, which nobody can know
        taken(damage)


@cases(24)
@given(st.binary(max_size=200) | st.text().map(str.encode))
@example(b"[" * 100_000)
@example(b'{"timesteps": ' + b"[" * 100_000)
def test_what_is_no_schedule_is_one_line(content: bytes) -> None:
    assert result_or_line(lambda: Schedule.from_json(content, "my.json"), "my.json: ") is None

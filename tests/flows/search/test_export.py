"""Which schedule a path names."""

import json
from pathlib import Path

import pytest

from boss_core.errors import InputError
from boss_core.ode.schedule import Schedule
from flows.search.export import read_schedule

FOUR = Schedule(timesteps=(0.0, 0.2, 0.4, 0.7, 1.0), solver="ab2")
TWO = Schedule(timesteps=(0.0, 0.5, 1.0))


@pytest.fixture
def of_run(tmp_path: Path) -> Path:
    """Schedules as the pipeline writes them."""
    as_json = {
        "2": {"bellman": json.loads(TWO.to_json())},
        "4": {"chosen": json.loads(FOUR.to_json())},
    }
    path = tmp_path / "schedules.json"
    path.write_text(json.dumps(as_json))
    return path


def test_one_of_a_run(of_run: Path) -> None:
    assert read_schedule(Path(f"{of_run}#4/chosen")) == FOUR
    assert read_schedule(Path(f"{of_run}#2/bellman")) == TWO


def test_which_one_has_to_be_said(of_run: Path) -> None:
    with pytest.raises(InputError, match=r"several budgets; one, as .*#2/bellman, needed"):
        read_schedule(of_run)
    with pytest.raises(InputError, match="#4/bellman: no such schedule; 2/bellman, 4/chosen known"):
        read_schedule(Path(f"{of_run}#4/bellman"))
    with pytest.raises(InputError, match=r"other.json: no such file; the schedules of a run"):
        read_schedule(of_run.parent / "other.json#4/chosen")


def test_a_name_with_the_mark_is_a_name(of_run: Path) -> None:
    path = of_run.with_name("run #4.json")
    path.write_text(TWO.to_json())
    assert read_schedule(path) == TWO
    with pytest.raises(InputError, match=r"#2/bellman: one schedule, without names"):
        read_schedule(Path(f"{path}#2/bellman"))

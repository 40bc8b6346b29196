"""What is compared: the schedules of a budget, and the variants that are sampled with them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from boss_core.schedules import Schedule
from flows import paths
from flows.records import Json, read_json


@dataclass(frozen=True)
class Variant:
    """A column of the table. schedule: the name of the steps, which bring their solver. trained:
    whether the student of those steps is sampled, or the teacher."""

    title: str
    schedule: str
    trained: bool


def _every(solver: str) -> dict[str, Variant]:
    """All variants in the order of the table, those of the paper first; ``solver``: of the chosen
    steps. The paper's are Euler's, so that only another one is worth a word."""
    by = "" if solver == "euler" else f", {solver}"
    return {
        "pretrained_uniform": Variant("pretrained, uniform steps", "uniform", False),
        "pretrained_bellman": Variant("pretrained, Bellman steps", "bellman", False),
        "straightened_uniform": Variant("straightened, uniform steps", "uniform", True),
        "boss": Variant("BOSS: straightened, Bellman steps", "bellman", True),
        "chosen_uniform": Variant(f"pretrained, uniform steps{by}", "chosen_uniform", False),
        "chosen": Variant(f"pretrained, chosen steps{by}", "chosen", False),
        "chosen_straightened": Variant(f"straightened, chosen steps{by}", "chosen", True),
    }


def variants(schedules: Mapping[str, Schedule]) -> dict[str, Variant]:
    """The variants of one budget: those whose steps `schedule` was asked for."""
    every = _every(chosen_solver(schedules))
    return {name: variant for name, variant in every.items() if variant.schedule in schedules}


def trained(schedules: Mapping[str, Schedule]) -> list[str]:
    """The names of the schedules that a student is trained for."""
    return list(dict.fromkeys(v.schedule for v in variants(schedules).values() if v.trained))


def recorded(record: Json) -> dict[str, Variant]:
    """The variants in the record of one budget."""
    every = _every(record.get("chosen_solver", "euler"))
    return {name: variant for name, variant in every.items() if name in record}


def chosen_solver(schedules: Mapping[str, Schedule]) -> str:
    """The solver of the chosen steps: Euler where the paper's are all that there is."""
    return schedules["chosen"].solver if "chosen" in schedules else "euler"


def read_schedules() -> dict[int, dict[str, Schedule]]:
    """For every budget, its schedules by name: ``uniform``, ``bellman``, other grids, and
    ``chosen`` and ``chosen_uniform`` where params.yaml asks for more than the paper's."""
    content = read_json(paths.SCHEDULES)
    return {
        int(budget): {
            name: Schedule.from_json(json.dumps(schedule), paths.SCHEDULES)
            for name, schedule in schedules.items()
        }
        for budget, schedules in content.items()
    }

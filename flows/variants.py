"""What is compared: the schedules of a budget, and the variants that are sampled with them."""

import json

from boss_core.schedules import Schedule
from flows import paths
from flows.records import read_json

# Columns of the table, in order: what is sampled, and with which steps.
VARIANTS = {
    "pretrained_uniform": "pretrained, uniform steps",
    "pretrained_bellman": "pretrained, Bellman steps",
    "straightened_uniform": "straightened, uniform steps",
    "boss": "BOSS: straightened, Bellman steps",
}
BASELINES = ("uniform", "bellman")  # the schedules that a student is trained for


def read_schedules() -> dict[int, dict[str, Schedule]]:
    """For every budget, its schedules by name: ``bellman``, ``uniform`` and other grids."""
    content = read_json(paths.SCHEDULES)
    return {
        int(budget): {
            name: Schedule.from_json(json.dumps(schedule), paths.SCHEDULES)
            for name, schedule in schedules.items()
        }
        for budget, schedules in content.items()
    }

"""What a finished small project has recorded."""

from flows.records.record import read_record
from tests.helpers.project import Project

PAPERS = ("pretrained_uniform", "pretrained_bellman", "straightened_uniform", "boss")


VARIANTS = (*PAPERS, "multistep", "chosen_uniform", "chosen", "chosen_straightened")


# The methods of params.yaml, and the steps that each trains for.
STUDENTS = {"straightened_uniform": "uniform", "boss": "bellman", "chosen_straightened": "chosen"}


def record(project: Project, name: int | str) -> dict:
    return read_record(name, project.folder)

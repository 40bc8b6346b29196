"""What each stage took: ``results/usage/STAGE.json``, a record for each part that was measured.

No output of the stages, as no two runs take the same: DVC neither keeps nor restores it. A record
carries the hash of the result that it belongs to, and is not read beside another one.
"""

import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from boss_core.errors import InputError
from boss_core.io.files import sha256
from flows import paths
from flows.measure.command import calling
from flows.records.json_files import Json, read_json, write_json

if TYPE_CHECKING:
    from flows.measure.energy import Usage


def write_usage(stage: str, taken: "Mapping[str, Usage | None]") -> None:
    """Write what the parts of a stage took, once its result is stored; None: was not measured
    whole, as of a training that went on from a checkpoint. Where it cannot be written, a line on
    stderr says so: no result hangs on it."""
    of_all = {"result": sha256(_result(stage)), "stored": time.time(), **asdict(calling())}
    records = {
        name: {key: found for key, found in asdict(usage).items() if found is not None} | of_all
        for name, usage in taken.items()
        if usage is not None
    }
    try:
        write_json(paths.usage(stage), records)
    except OSError as error:
        print(
            f"warning: {paths.usage(stage)}: {error.strerror}; what {stage} took is not recorded",
            file=sys.stderr,
        )


def read_usage(stage: str, folder: Path = Path()) -> dict[str, Json]:
    """The records of a stage by the names of its parts: ``seconds``, ``peak_memory_bytes`` and,
    where there are any, ``images``, ``energy_kwh`` and ``energy_source``; ``began`` and ``stored``,
    UNIX seconds, and the fields of the `flows.measure.command.Command` it was part of. Without
    those of another result than the one in ``folder``, as of a stage that DVC has restored since.
    """
    path, result = folder / paths.usage(stage), folder / _result(stage)
    if not path.is_file() or not result.is_file():
        return {}
    try:
        found, expected = read_json(path), sha256(result)
    except InputError:  # cut short by a kill: it is no output, and nothing hangs on it
        return {}
    return {
        name: record
        for name, record in found.items()
        if isinstance(record, dict) and record.get("result") == expected
        if {"seconds", "peak_memory_bytes"} <= record.keys()
    }


def amounts(record: Json, grid_intensity: float) -> dict[str, float]:
    """The numbers of a record, with images a second and g CO2 where they are known."""
    found = {key: record[key] for key in ("seconds", "peak_memory_bytes")}
    if "images" in record:
        found["images_per_second"] = record["images"] / record["seconds"]
    if "energy_kwh" in record:
        found["energy_kwh"] = record["energy_kwh"]
        found["co2_grams"] = record["energy_kwh"] * grid_intensity
    return found


def stages(budgets: list[int]) -> list[str]:
    """The stages that are measured, in the order in which they run."""
    before = ["features", "teacher", "cost", "schedule", "trajectories"]
    of_budgets = [f"{stage}-{k}" for stage in ("finetune", "evaluate") for k in sorted(budgets)]
    return [*before, *of_budgets, "floor"]


def _result(stage: str) -> Path:
    """A small file that tells one result of a stage from another."""
    name, _, budget = stage.partition("-")
    return {
        "features": paths.FEATURES / "card.json",
        "teacher": paths.curves("teacher"),
        "cost": paths.COST,
        "schedule": paths.SCHEDULES,
        "trajectories": paths.TRAJECTORIES / "card.json",
        "finetune": paths.curves(budget),
        "evaluate": paths.metrics(budget),
        "floor": paths.metrics("teacher"),
    }[name]

"""The teacher's states on disk: one rollout for all budgets, a file a call, from which a run that
was stopped goes on."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors

from boss_core.errors import InputError
from boss_core.interop.pipeline_students import load_states, save_states
from boss_core.interop.teacher_forcing import KnotStates, teacher_states
from boss_core.io.files import write_bytes
from boss_core.ode.noise import TRAJECTORIES, seed_for
from boss_core.ode.timesteps import Times
from boss_core.training import distributed
from flows.progress import progress
from flows.search.refusals import pipeline_refusals
from flows.straighten.processes import say
from flows.straighten.teacher import PipelineTeacher

KEY = "rollout.json"


@dataclass(frozen=True)
class Rollout:
    """The teacher's states of groups of samples at the knots of all schedules.

    folder: of one file a group. groups: the samples of each. knots: their grid indices.
    """

    folder: Path
    groups: tuple[range, ...]
    knots: tuple[int, ...]

    def path(self, group: int) -> Path:
        return self.folder / f"{group:06d}.safetensors"

    def states(self, group: int, indices: Sequence[int]) -> KnotStates:
        """Those of a group at some of the knots, on the CPU."""
        return load_states(self.path(group)).at([self.knots.index(i) for i in indices])


def roll_out(teacher: PipelineTeacher, rollout: Rollout, times: Times, seed: int) -> None:
    """Make what is missing of a rollout.

    Several processes share the groups. Files of other settings in its folder make way."""
    share = distributed.own_share()
    key = {
        "teacher": teacher.hash,
        "conditions": teacher.conditions,
        "timesteps": times.tolist(),
        "knots": list(rollout.knots),
        "groups": [[g.start, g.stop] for g in rollout.groups],
        "seed": seed,
    }
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    if share.rank == 0:
        _make_way(rollout.folder, key)
    distributed.wait()
    todo = [k for k in range(len(rollout.groups)) if not _is_whole(rollout.path(k), digest)]
    done = len(rollout.groups) - len(todo)
    if done:
        say(f"rollout: {done} of {len(rollout.groups)} calls are in {rollout.folder} already")
    distributed.wait()
    own = share.take(todo)
    total = sum(len(rollout.groups[k]) for k in own) * (len(times) - 1)
    with progress("rollout", total, "sample steps") as advance:
        for number in own:
            part = rollout.groups[number]
            call = teacher.training.call(part, seed=seed_for(TRAJECTORIES, seed))
            with pipeline_refusals(teacher.pipeline):
                found, _ = teacher_states(
                    teacher.pipeline, times, rollout.knots, call, on_step=advance
                )
            save_states(rollout.path(number), found, {"key": digest})
    distributed.wait()


def _make_way(folder: Path, key: dict[str, object]) -> None:
    """Remove a rollout of other settings, and say what is in the folder."""
    path = folder / KEY
    try:
        there = json.loads(path.read_text()) if path.is_file() else None
    except ValueError:
        there = {}
    if there is not None and there != key:
        names = [name for name in key if there.get(name) != key[name]]
        print(f"rollout: made anew, as {', '.join(names)} changed")
        shutil.rmtree(folder)
    elif there is None and folder.exists() and any(folder.iterdir()):
        raise InputError(
            f"{folder}: holds files, but no {KEY}; an empty place for the teacher's states needed"
        )
    write_bytes(path, json.dumps(key).encode() + b"\n")


def _is_whole(path: Path, digest: str) -> bool:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("key") == digest
    except (safetensors.SafetensorError, OSError):
        return False

"""One rollout of a network for the students of several schedules, in memory or on disk, from where
it goes on after a kill."""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from boss_core.errors import InputError
from boss_core.io.files import new_array, write_bytes
from boss_core.ode.noise import TRAJECTORIES, NoiseSource, sample_labels, seed_for
from boss_core.ode.schedule import Schedule
from boss_core.ode.timesteps import Times, uniform, union
from boss_core.ode.velocity import Velocity
from boss_core.straightening.segments import knot_states
from boss_core.training.distributed import own_share, wait

STATES, RUN, DONE = "states.npy", "run.json", "done"
# Times nearer than this are one: of a grid as numbers have them, and as a file does.
_SAME = 1e-9
# Trajectories that are compared before a rollout goes on, and how far they may be apart.
_COMPARED, _APART = 4, 0.01


@dataclass(frozen=True)
class Rollout:
    """Trajectories of a network, at the knots of several schedules.

    states: (N, U, *shape) float32, maybe memory-mapped. knots: the U grid indices. grid: the times
    of the fine steps. schedules: those that it is for, with indices on this grid. labels: (N,)
    int64, None for an unconditional network.
    """

    states: NDArray[np.float32]
    knots: tuple[int, ...]
    grid: Times
    schedules: tuple[Schedule, ...]
    labels: NDArray[np.int64] | None = None


def on_one_grid(schedules: Sequence[Schedule], steps: int) -> tuple[Times, tuple[Schedule, ...]]:
    """A fine grid of so many equal steps with the times of all schedules put into it, and the
    schedules with their indices there. Their times stay as they are: where one is no time of the
    grid, the grid has a step more.

    InputError for a schedule of more steps than that, and for one that does not begin at noise.
    """
    for schedule in schedules:
        if schedule.steps > steps:
            raise InputError(f"schedule: {schedule.steps} steps on a grid of {steps}; fewer needed")
        if schedule.timesteps[0] != 0:
            raise InputError(f"schedule: begins at t = {schedule.timesteps[0]:g}; 0 needed")
    own = sorted({t for schedule in schedules for t in schedule.timesteps})
    even = [t for t in uniform(steps) if min(abs(t - other) for other in own) > _SAME]
    grid = np.array(sorted([*own, *even]))
    place = {t: index for index, t in enumerate(grid.tolist())}
    moved = [
        schedule.model_copy(update={"indices": tuple(place[t] for t in schedule.timesteps)})
        for schedule in schedules
    ]
    return grid, tuple(moved)


# Its parameters are what one rollout differs by from the next; all but three have names.
def roll_out(
    velocity: Velocity,
    schedules: Sequence[Schedule],
    source: NoiseSource,
    *,
    trajectories: int,
    grid: int,
    batch_size: int,
    folder: Path | None = None,
    teacher_hash: str = "",
    on_step: Callable[[int], None] | None = None,
) -> Rollout:
    """Roll out trajectories once for all schedules, by Euler on a fine grid (`on_one_grid`).

    source: of their noise and labels, on the device of the network. batch_size: trajectories at
        a time. on_step: called after each fine step with the number of trajectories that took it,
        and at once for those that a folder holds already.
    folder: where the states lie, and what there is of them already; None for memory. Several
        processes (`boss_core.training.distributed`) share the work where there is a folder, and
        each does all of it where there is none.
    teacher_hash: of the network, by which a folder is known to be of the same rollout. What is
        there is compared with a few trajectories, too, as the network may be called otherwise.

    InputError as `boss_core.straightening.segments.knot_states`, and for a folder of another
    rollout.
    """
    times, moved = on_one_grid(schedules, grid)
    knots = union([schedule.indices for schedule in moved])
    seed = seed_for(TRAJECTORIES, source.seed)
    labels: Tensor | None = None
    if source.classes is not None:
        of = range(trajectories)
        labels = sample_labels(of, source.classes, seed, frequencies=source.frequencies)
    shape = (trajectories, len(knots), *source.shape)

    def fill(out: NDArray[np.float32], rows: range, told: Callable[[int], None] | None) -> None:
        knot_states(
            velocity, times, knots, out, seed=seed, batch_size=batch_size,
            device=torch.device(source.device), rows=rows, on_step=told,
            labels=None if labels is None else labels[: len(out)],
        )  # fmt: skip

    if folder is None:
        states = np.empty(shape, np.float32)
        fill(states, range(trajectories), on_step)
    else:
        run = {"network": teacher_hash, "grid": times.tolist(), "knots": list(knots)}
        run |= {"shape": list(shape), "batch_size": batch_size, "source": _described(source)}
        states = _on_disk(folder, run, shape, fill, on_step)
    return Rollout(states, knots, times, moved, None if labels is None else labels.numpy())


Fill = Callable[[NDArray[np.float32], range, Callable[[int], None] | None], None]


def _on_disk(
    folder: Path,
    run: dict[str, Any],
    shape: tuple[int, ...],
    fill: Fill,
    on_step: Callable[[int], None] | None,
) -> NDArray[np.float32]:
    """The states in a file, filled part by part; a name in `DONE` says that a part is there."""
    size, share = run["batch_size"], own_share()
    parts = [range(start, min(start + size, shape[0])) for start in range(0, shape[0], size)]
    if share.rank == 0:
        _prepare(folder, run, shape)
    wait()
    states = np.load(folder / STATES, mmap_mode="r+")
    if share.rank == 0 and (folder / DONE / "0").exists():
        _check_first(folder, states, parts[0][:_COMPARED], fill)
    for part in share.take(parts):
        done = folder / DONE / str(part.start)
        if not done.exists():
            fill(states, part, on_step)
            states.flush()
            done.touch()
        elif on_step is not None:
            on_step(len(part) * (len(run["grid"]) - 1))
    wait()
    return np.load(folder / STATES, mmap_mode="r")


def _check_first(folder: Path, states: NDArray[np.float32], rows: range, fill: Fill) -> None:
    """InputError where the network no longer takes the first trajectories of a folder."""
    again = np.empty((len(rows), *states.shape[1:]), np.float32)
    fill(again, rows, None)
    apart = np.linalg.norm(again - states[: len(rows)]) / np.linalg.norm(again)
    if not apart <= _APART:
        raise InputError(
            f"{folder}: the trajectories of a network that was called otherwise ({apart:.0%} from"
            " those of this one); another folder, or that one removed, needed"
        )


def _prepare(folder: Path, run: dict[str, Any], shape: tuple[int, ...]) -> None:
    """The files of a rollout to begin with, or to go on from; InputError for one of another."""
    digest = hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()
    key, there = {**run, "sha256": digest}, None
    with suppress(OSError, ValueError):
        there = json.loads((folder / RUN).read_text())
    if there is not None and there != key:
        other = [name for name in run if there.get(name) != run[name]]
        raise InputError(
            f"{folder}: the trajectories of another run ({', '.join(other)} differ); another"
            " folder, or that one removed, needed"
        )
    (folder / DONE).mkdir(parents=True, exist_ok=True)
    if there is None or not (folder / STATES).is_file():
        for name in (folder / DONE).iterdir():
            name.unlink()
        with new_array(folder / STATES, shape, np.float32):
            pass  # all of its place on the disk
        write_bytes(folder / RUN, json.dumps(key, indent=1).encode() + b"\n")


def _described(source: NoiseSource) -> dict[str, Any]:
    """What draws depend on, as JSON has it."""
    found = asdict(source)
    del found["device"]
    return json.loads(json.dumps(found))

"""Straighten the teacher for one budget: on uniform steps, on Bellman's (BOSS), and on the chosen
ones, each for the solver of its schedule."""

import sys

import numpy as np
import pandas as pd

from boss_core.checkpoints import Network, load_checkpoint, save_checkpoint
from boss_core.files import write_bytes
from boss_core.resident import Rows
from boss_core.resume import Checkpoints
from boss_core.straighten import Segments
from boss_core.training import Row, Trained, train
from flows import paths
from flows.config import Params
from flows.records import read_json
from flows.runtime import checkpoints, device, is_main, run_stage, training_progress
from flows.variants import read_schedules, trained


def main(params: Params, budget: int) -> None:
    on = device(params)
    states = Rows.of(np.load(paths.TRAJECTORIES / "states.npy", mmap_mode="r"), on, halve=True)
    knots = read_json(paths.TRAJECTORIES / "card.json")["knots"]
    path = paths.TRAJECTORIES / "labels.npy"
    labels = np.load(path) if path.exists() else None  # of a conditional network
    data = [states.array] if labels is None else [states.array, labels]
    schedules = read_schedules()[budget]
    curves: dict[str, list[Row]] = {}
    done: dict[tuple[tuple[int, ...], str], Trained[Network]] = {}
    kept: list[Checkpoints] = []
    for name in trained(schedules):
        schedule = schedules[name]
        teacher, card = load_checkpoint(paths.TEACHER)
        # Where schedules are the same, so are their students: at one step, for example, which
        # every solver takes as Euler does.
        steps = schedule.indices, schedule.solver if schedule.steps > 1 else "euler"
        if steps not in done:
            label = f"finetune@{budget} {name}"
            segments = Segments.of(states, knots, schedule, labels)
            run = {"label": label, "schedule": schedule.model_dump(mode="json")}
            kept.append(checkpoints(params, label, run, data))
            done[steps] = _straighten(params, teacher.to(on), segments, label, kept[-1])
        if not is_main():
            continue
        curves[name] = done[steps].curve
        save_checkpoint(
            paths.student(budget) / name,
            done[steps].network.cpu(),
            teacher_hash=card.weights_sha256,
            schedule=schedule,
        )
    if is_main():
        write_bytes(paths.curves(budget), _table(curves).to_csv(index=False).encode())
        for one in kept:
            one.remove()


def _straighten(
    params: Params, teacher: Network, segments: Segments, label: str, kept: Checkpoints
) -> Trained[Network]:
    settings = params.finetune.training
    first = params.trajectories.training_samples
    validation = range(first, params.trajectories.samples)

    def validate(network: Network) -> Row:
        losses = segments.segment_losses(network, validation, 4 * settings.batch_size)
        return {
            "validation_loss": float(np.mean(losses)),
            **{f"validation_loss_segment_{k}": value for k, value in enumerate(losses)},
        }

    with training_progress(label, settings.iterations) as advance:
        return train(
            teacher.requires_grad_(True),
            segments.training_loss(
                seed=params.seed, trajectories=first, batch_size=settings.batch_size
            ),
            settings,
            precision=params.compute.precision,
            compile=params.compute.compile,
            validate=validate,
            on_step=advance,
            checkpoints=kept,
        )


def _table(curves: dict[str, list[Row]]) -> pd.DataFrame:
    """One row a step, the columns of each schedule's student under its name."""
    tables = [
        pd.DataFrame(rows).set_index("step").add_prefix(f"{name}_") for name, rows in curves.items()
    ]
    return pd.concat(tables, axis=1).reset_index()


if __name__ == "__main__":
    run_stage(lambda params: main(params, int(sys.argv[1])), trains=lambda _: True)

"""Finetune the teacher for one budget, by every method that was asked for: straightening, each for
the steps and the solver of its schedule, and reflow."""

import sys

import numpy as np
import torch

from boss_core.checkpoints.folder import Network, load_checkpoint, save_checkpoint
from boss_core.checkpoints.lora import adapter_tensors, add_adapter, save_adapter
from boss_core.networks.threads import is_small
from boss_core.straightening.reflow import Pairs
from boss_core.straightening.segments import Segments
from boss_core.training.device_rows import DeviceRows
from boss_core.training.loop import Row, Trained, train
from boss_core.training.resume import Checkpoints
from boss_core.training.settings import training_share
from flows import paths
from flows.config import Params
from flows.measure.energy import Usage, measured
from flows.measure.usage import write_usage
from flows.records.json_files import read_json
from flows.records.tables import side_by_side, write_table
from flows.records.teachers import is_pipeline
from flows.records.variants import Loss, read_schedules, students
from flows.stages.runner import device, is_main, run_stage
from flows.stages.training import checkpoints, training_progress

Steps = tuple[tuple[int, ...], str]  # grid indices and solver


def main(params: Params, budget: int) -> None:
    if is_pipeline():
        _finetune_pipeline(params, budget)
        return
    on = device(params, small=is_small(load_checkpoint(paths.TEACHER)[0]))
    states = DeviceRows.of(
        np.load(paths.TRAJECTORIES / "states.npy", mmap_mode="r"), on, halve=True
    )
    knots = read_json(paths.TRAJECTORIES / "card.json")["knots"]
    path = paths.TRAJECTORIES / "labels.npy"
    labels = np.load(path) if path.exists() else None  # of a conditional network
    data = [states.array] if labels is None else [states.array, labels]
    schedules = read_schedules()[budget]
    curves: dict[str, list[Row]] = {}
    kept: list[Checkpoints] = []
    done: dict[tuple[Loss | None, bool, Steps], tuple[Trained[Network], Usage | None]] = {}
    taken: dict[str, Usage | None] = {}
    for name, variant in students(schedules, params.finetune.methods).items():
        schedule = schedules[variant.schedule]
        teacher, card = load_checkpoint(paths.TEACHER)
        # Where schedules are the same, so are their students: at one step, for example, which
        # every solver takes as Euler does.
        steps = schedule.indices, schedule.solver if schedule.steps > 1 else "euler"
        key = variant.loss, variant.adapter, steps
        if key not in done:
            label = f"finetune@{budget} {name}"
            batches: Segments | Pairs
            if variant.loss == "straightening":
                batches = Segments.of(states, knots, schedule, labels)
            else:
                distill = variant.loss == "distillation"
                batches = Pairs.of(states, knots, schedule, labels, distill=distill)
            network = _to_train(params, teacher, label, adapter=variant.adapter)
            run = {"label": label, "schedule": schedule.model_dump(mode="json")}
            kept.append(checkpoints(params, label, run, data))
            done[key] = _train(params, network.to(on), batches, label, kept[-1], on)
        if not is_main():
            continue
        trained, taken[name] = done[key]
        curves[name] = trained.curve
        network, folder = trained.network.cpu(), paths.student(budget) / name
        of = card.weights_sha256
        if variant.adapter:
            rank = params.finetune.lora_rank
            save_adapter(folder, network, rank=rank, teacher_hash=of, schedule=schedule)
        else:
            save_checkpoint(folder, network, teacher_hash=of, schedule=schedule)
    if is_main():
        write_table(paths.curves(budget), side_by_side(curves))
        write_usage(f"finetune-{budget}", taken)
        for one in kept:
            one.remove()


def _finetune_pipeline(params: Params, budget: int) -> None:
    from flows.stages.pipelines.finetune import finetune

    schedules = read_schedules()[budget]
    wanted = students(schedules, params.finetune.methods)
    done = finetune(params, budget, wanted, schedules)
    if not is_main():
        return
    write_table(paths.curves(budget), side_by_side(done.curves))
    write_usage(f"finetune-{budget}", done.taken)
    for one in done.kept:
        one.remove()


def _to_train(params: Params, teacher: Network, label: str, *, adapter: bool) -> Network:
    """The teacher with what is to be trained of it needing gradients: all, or an adapter."""
    if not adapter:
        return teacher.requires_grad_(True)
    of_teacher = sum(p.numel() for p in teacher.parameters())
    network = add_adapter(teacher, params.finetune.lora_rank, seed=params.seed)
    count = sum(p.numel() for _, p in adapter_tensors(network))
    if is_main():
        share = f"{100 * count / of_teacher:.2f} %"
        print(f"{label}: {count:,} parameters trained, {share} of the teacher's {of_teacher:,}")
    return network


def _train(
    params: Params,
    network: Network,
    batches: Segments | Pairs,
    label: str,
    kept: Checkpoints,
    on: torch.device,
) -> tuple[Trained[Network], Usage | None]:
    """The student, and what all of the training took; None where it went on."""
    settings = params.finetune.training
    first = training_share(params.trajectories.samples, params.trajectories.validation_fraction)
    validation = range(first, params.trajectories.samples)

    def validate(network: Network) -> Row:
        if isinstance(batches, Segments):
            part = "segment"
            losses = batches.segment_losses(network, validation, 4 * settings.batch_size)
        else:
            part = "time"
            losses = batches.time_losses(network, validation, 4 * settings.batch_size)
        return {
            "validation_loss": float(np.mean(losses)),
            **{f"validation_loss_{part}_{k}": value for k, value in enumerate(losses)},
        }

    with (
        training_progress(label, settings.iterations) as advance,
        measured(on, settings.iterations * settings.batch_size) as usage,
    ):
        trained = train(
            network,
            batches.training_loss(
                seed=params.seed, trajectories=first, batch_size=settings.batch_size
            ),
            settings,
            precision=params.compute.precision,
            compile=params.compute.compile,
            validate=validate,
            on_step=advance,
            checkpoints=kept,
        )
    return trained, None if trained.start else usage


if __name__ == "__main__":
    run_stage(lambda params: main(params, int(sys.argv[1])), trains=lambda _: True)

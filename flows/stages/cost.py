"""The cost of every step of the fine grid, measured on the teacher's trajectories."""

import numpy as np

from boss_core.bellman.bootstrap import settled
from boss_core.checkpoints.folder import load_checkpoint
from boss_core.costs.matrix import CostSum, add_trajectories, rollout_bytes
from boss_core.ode.timesteps import uniform
from boss_core.ode.velocity import CountedVelocity, sample_noise
from flows import paths
from flows.config import Params
from flows.measure.energy import measured
from flows.measure.usage import write_usage
from flows.progress import progress
from flows.records.cost_file import write_cost_matrix
from flows.records.labels import draw_labels
from flows.records.seeds import COST
from flows.stages.runner import device, run_stage

# `cost.samples: auto` stops when the paper's steps of these budgets stay where they are. Not those
# of params.yaml: one measurement serves all budgets, and new ones would make it run again.
BUDGETS = tuple(range(2, 11))


def main(params: Params) -> None:
    on = device(params)
    network, card = load_checkpoint(paths.TEACHER)
    velocity = CountedVelocity(network.to(on))
    settings = params.cost
    shape = network.config.sample_shape
    auto = settings.samples == "auto"
    most = settings.max_samples if settings.samples == "auto" else settings.samples
    batch = min(settings.batch_size, most)
    held = rollout_bytes(settings.grid, int(np.prod(shape)), batch, reference=settings.reference)
    print(
        f"cost: {'at most ' * auto}{most} trajectories of {settings.grid} steps in batches of"
        f" {batch}, holding {held / 2**20:.1f} MiB of velocities"
    )
    labels = draw_labels(network.config.classes, most, params.seed + COST)
    total = CostSum(uniform(settings.grid), on, reference=settings.reference)
    still = False
    with (
        progress("cost", most * settings.grid, "sample steps") as advance,
        measured(on) as usage,
    ):
        while total.samples < most and not still:
            rows = range(total.samples, min(total.samples + batch, most))
            add_trajectories(
                total,
                velocity,
                sample_noise(rows, shape, params.seed + COST).to(on),
                batch_size=batch,
                labels=None if labels is None else labels[rows.start : rows.stop].to(on),
                on_step=advance,
            )
            if auto:
                budgets = [k for k in BUDGETS if k <= settings.grid]
                still = settled(total.result(), budgets, seed=params.seed)
        matrix = total.result()
    usage.images = total.samples
    if auto:
        outcome = "no knot of the paper's steps would move by more than a grid step"
        why = outcome if still else f"cost.max_samples, and not yet so many that {outcome}"
        print(f"cost: stopped at {total.samples} trajectories: {why}")
    write_cost_matrix(paths.COST, matrix, card.weights_sha256)
    write_usage("cost", {"search": usage})


if __name__ == "__main__":
    run_stage(main)

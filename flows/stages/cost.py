"""The cost of every step of the fine grid, measured on the teacher's trajectories."""

import numpy as np

from boss_core.bellman.bootstrap import settled
from boss_core.checkpoints.folder import load_checkpoint
from boss_core.costs.cost_file import network_key, write_costs
from boss_core.costs.matrix import rollout_bytes
from boss_core.costs.measure import measure_costs
from boss_core.networks.threads import is_small
from boss_core.ode.velocity import CountedVelocity
from flows import paths
from flows.config import Params
from flows.measure.energy import measured
from flows.measure.usage import write_usage
from flows.progress import progress
from flows.records.labels import noise_source
from flows.records.teachers import is_pipeline
from flows.stages.runner import device, run_stage

# `cost.samples: auto` stops when the paper's steps of these budgets stay where they are. Not those
# of params.yaml: one measurement serves all budgets, and new ones would make it run again.
BUDGETS = tuple(range(2, 11))


def main(params: Params) -> None:
    if is_pipeline():
        from flows.stages.pipelines.search import write_pipeline_costs

        write_pipeline_costs(params)
        return
    network, card = load_checkpoint(paths.TEACHER)
    on = device(params, small=is_small(network))
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
    source = noise_source(network, params.seed, on)
    key = network_key(source, card.weights_sha256, settings.grid, reference=settings.reference)
    total = key.empty_sum(on)
    still = False

    def settles() -> bool:
        nonlocal still
        budgets = [k for k in BUDGETS if k <= settings.grid]
        still = settled(total.result(), budgets, seed=params.seed)
        return still

    with (
        progress("cost", most * settings.grid, "sample steps") as advance,
        measured(on) as usage,
    ):
        measure_costs(
            total,
            velocity,
            source,
            samples=most,
            batch_size=batch,
            on_step=advance,
            on_batch=settles if auto else None,
        )
    usage.images = total.samples
    if auto:
        outcome = "no knot of the paper's steps would move by more than a grid step"
        why = outcome if still else f"cost.max_samples, and not yet so many that {outcome}"
        print(f"cost: stopped at {total.samples} trajectories: {why}")
    write_costs(paths.COST, key, total)
    write_usage("cost", {"search": usage})


if __name__ == "__main__":
    run_stage(main)

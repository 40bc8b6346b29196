"""The cost of every step of the fine grid, measured on the teacher's trajectories."""

import numpy as np

from boss_core.checkpoints import load_checkpoint
from boss_core.cost import estimate_cost_matrix, rollout_bytes
from boss_core.timesteps import uniform
from boss_core.velocity import CountedVelocity, sample_noise
from flows import paths
from flows.config import Params
from flows.costs import write_cost_matrix
from flows.labels import draw_labels
from flows.progress import progress
from flows.runtime import device, run_stage
from flows.seeds import COST


def main(params: Params) -> None:
    on = device(params)
    network, card = load_checkpoint(paths.TEACHER)
    velocity = CountedVelocity(network.to(on))
    settings = params.cost
    shape = network.config.sample_shape
    batch = min(settings.batch_size, settings.samples)
    held = rollout_bytes(settings.grid, int(np.prod(shape)), batch)
    print(
        f"cost: {settings.samples} trajectories of {settings.grid} steps in batches of {batch},"
        f" holding {held / 2**20:.1f} MiB of velocities"
    )
    labels = draw_labels(network.config.classes, settings.samples, params.seed + COST)
    with progress("cost", settings.samples * settings.grid, "sample steps") as advance:
        matrix = estimate_cost_matrix(
            velocity,
            sample_noise(range(settings.samples), shape, params.seed + COST).to(on),
            uniform(settings.grid),
            batch_size=batch,
            labels=None if labels is None else labels.to(on),
            on_step=advance,
        )
    write_cost_matrix(paths.COST, matrix, card.weights_sha256)


if __name__ == "__main__":
    run_stage(main)

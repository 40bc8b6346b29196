"""The teacher's trajectories, kept at every knot that a student is trained on: one rollout."""

import numpy as np

from boss_core.checkpoints.folder import load_checkpoint
from boss_core.io.files import new_array, replacing_folder
from boss_core.networks.threads import is_small
from boss_core.ode.noise import TRAJECTORIES, seed_for
from boss_core.ode.timesteps import uniform, union
from boss_core.straightening.segments import knot_states
from flows import paths
from flows.config import Params
from flows.measure.energy import measured
from flows.measure.usage import write_usage
from flows.progress import progress
from flows.records.json_files import write_json
from flows.records.labels import draw_labels
from flows.records.teachers import is_pipeline
from flows.records.variants import needed_knots, read_schedules, students
from flows.stages.runner import device, run_stage


def main(params: Params) -> None:
    schedules = read_schedules()
    wanted = [
        (variant, schedules[budget])
        for budget in params.budgets
        for variant in students(schedules[budget], params.finetune.methods).values()
    ]
    knots = union([needed_knots(variant, of_budget) for variant, of_budget in wanted])
    if is_pipeline():
        from flows.stages.pipelines.trajectories import write_trajectories

        adapters = any(variant.adapter for variant, _ in wanted)
        write_trajectories(params, knots, adapters=adapters)
        return
    network, card = load_checkpoint(paths.TEACHER)
    on = device(params, small=is_small(network))
    settings = params.trajectories
    shape = (settings.samples, len(knots), *network.config.sample_shape)
    print(f"trajectories: {len(knots)} of {params.cost.grid + 1} grid points kept")
    seed = seed_for(TRAJECTORIES, params.seed)
    labels = draw_labels(network.config.classes, settings.samples, seed)
    steps = settings.samples * params.cost.grid
    with replacing_folder(paths.TRAJECTORIES) as folder:
        with (
            new_array(folder / "states.npy", shape, np.float32) as states,
            progress("trajectories", steps, "sample steps") as advance,
            measured(on, settings.samples) as usage,
        ):
            knot_states(
                network.to(on),
                uniform(params.cost.grid),
                knots,
                states,
                seed=seed,
                batch_size=settings.batch_size,
                device=on,
                labels=labels,
                on_step=advance,
            )
        if labels is not None:
            np.save(folder / "labels.npy", labels.numpy())
        of_states = {
            "knots": list(knots),
            "samples": settings.samples,
            "teacher_hash": card.weights_sha256,
        }
        write_json(folder / "card.json", of_states)
    write_usage("trajectories", {"generation": usage})


if __name__ == "__main__":
    run_stage(main)

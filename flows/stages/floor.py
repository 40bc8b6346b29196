"""The teacher on the whole fine grid: the quality that few steps can at best come close to."""

import numpy as np

from boss_core.checkpoints.folder import load_checkpoint
from boss_core.ode.timesteps import uniform
from flows import paths
from flows.config import Params
from flows.measure.usage import write_usage
from flows.records.json_files import write_json
from flows.records.teachers import is_pipeline
from flows.stages.evaluation import Evaluation
from flows.stages.runner import device, is_small, run_stage


def main(params: Params) -> None:
    grid = params.cost.grid
    if is_pipeline():
        from flows.stages.pipelines.evaluation import sample_reference

        of_pipeline, found, usage = sample_reference(params)
        write_json(paths.metrics("teacher"), {"nfe": grid, **of_pipeline, "fine": found})
        write_usage("floor", {"fine": usage})
        return
    network, card = load_checkpoint(paths.TEACHER)
    small = params.features.extractor == "classifier" and is_small(network)
    evaluation = Evaluation(params, device(params, small=small))
    found, usage = evaluation.of(
        network, np.asarray(uniform(grid)), f"floor: K = {grid}", "teacher", "fine"
    )
    write_json(
        paths.metrics("teacher"),
        {"nfe": grid, **evaluation.provenance, "teacher_hash": card.weights_sha256, "fine": found},
    )
    write_usage("floor", {"fine": usage})


if __name__ == "__main__":
    run_stage(main)

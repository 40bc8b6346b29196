"""The teacher on the whole fine grid: the quality that few steps can at best come close to."""

import numpy as np

from boss_core.checkpoints.folder import load_checkpoint
from boss_core.networks.threads import is_small
from boss_core.ode.timesteps import uniform
from flows import paths
from flows.config import Params
from flows.measure.usage import write_usage
from flows.records.extractor import only_classifiers
from flows.records.judges import write_replicates
from flows.records.record import write_record
from flows.records.teachers import is_pipeline
from flows.stages.evaluation import Evaluation
from flows.stages.runner import device, run_stage


def main(params: Params) -> None:
    grid = params.cost.grid
    if is_pipeline():
        from flows.stages.pipelines.evaluation import sample_reference

        provenance, found = sample_reference(params)
    else:
        network, card = load_checkpoint(paths.TEACHER)
        small = only_classifiers(params) and is_small(network)
        evaluation = Evaluation(params, device(params, small=small))
        provenance = evaluation.provenance | {"teacher_hash": card.weights_sha256}
        found = evaluation.of(
            network, np.asarray(uniform(grid)), f"floor: K = {grid}", "teacher", "fine"
        )
    write_replicates("teacher", {"fine": found.estimates})
    write_record("teacher", {"nfe": grid, **provenance}, {"fine": found.metrics})
    write_usage("floor", {"fine": found.usage})


if __name__ == "__main__":
    run_stage(main)

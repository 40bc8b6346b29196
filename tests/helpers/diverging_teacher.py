"""The teacher's stage with a loss that is no number at one step of one process, as no parameters
that are let through make it in so few steps.

python -m tests.helpers.diverging_teacher STEP RANK, in the folder of a project.
"""

import math
import sys
from typing import Any

from flows.stages import teacher
from flows.stages.runner import run_stage

if __name__ == "__main__":
    train = teacher.train
    at, rank = map(int, sys.argv[1:])

    def diverging(network: Any, loss: Any, *given: Any, **named: Any) -> Any:
        def of_step(network: Any, step: int, share: Any) -> Any:
            here = (step, share.rank) == (at, rank)
            return loss(network, step, share) * (math.nan if here else 1.0)

        return train(network, of_step, *given, **named)

    teacher.train = diverging
    run_stage(teacher.main, trains=lambda params: True)

"""The teacher's stage with a loss that is no number at one step of one process, as no parameters
that are let through make it in so few steps.

python -m tests.helpers.diverging_teacher STEP RANK, in the folder of a project.
"""

import math
import os
import sys
from itertools import count
from typing import Any

from torch import Tensor

from flows.stages import teacher
from flows.stages.runner import run_stage

if __name__ == "__main__":
    loss, calls = teacher.flow_matching_loss, count()
    at, rank = map(int, sys.argv[1:])

    def diverging(*given: Any) -> Tensor:
        here = next(calls) == at and int(os.environ.get("RANK", "0")) == rank
        return loss(*given) * (math.nan if here else 1.0)

    teacher.flow_matching_loss = diverging
    run_stage(teacher.main, trains=lambda params: True)

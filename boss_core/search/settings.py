"""What a search is for, and how it shows what it does."""

import pathlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from boss_core.bellman.names import GITS_GAMMA
from boss_core.ode.solver_table import LARGEST_ORDER

# Objectives that evaluate the network again.
SAMPLED = ("oss", "refine", "auto", "lpips")
# Of solver ``multistep`` alone: weights fitted on equal steps.
UNIFORM = "uniform"
# Noises that those need: enough for `auto`, which compares ten blocks of them.
FEWEST = 20
# `auto` compares on so many times as many noises as it searches on.
HELD_OUT = 2

# ``progress(label, total, unit)``: a context whose value is called with the work done since.
Progress = Callable[[str, int | None, str], AbstractContextManager[Callable[[int], None] | None]]


def no_progress(
    label: str, total: int | None, unit: str
) -> AbstractContextManager[Callable[[int], None] | None]:
    """Shows nothing."""
    return nullcontext()


@dataclass(frozen=True)
class SearchSettings:
    """What `boss_core.search.find.find_steps` searches for, and how.

    solver: that the steps are for, a linear multistep method.
    order: velocities of a step of ``multistep``, 2 or 3; of no other solver.
    objective: one of `boss_core.bellman.names.OBJECTIVES` or of `SAMPLED`; for ``multistep`` also
        ``uniform``, equal steps.
    gamma: of ``gits``, which ``auto`` tries too.
    distance: the name of what ``refine`` and ``auto`` compare samples by, for the record.
    samples: noises of the `SAMPLED` objectives; ``auto`` holds out `HELD_OUT` times as many.
    batch_size: states evaluated together; changes no result.
    lpips: the folder of its weights files, for that objective.
    """

    solver: str = "euler"
    order: int = LARGEST_ORDER
    objective: str = "l2_squared"
    gamma: float = GITS_GAMMA
    distance: str = "sliced_wasserstein"
    samples: int = 256
    batch_size: int = 64
    lpips: pathlib.Path | None = None

    @property
    def papers(self) -> bool:
        """Whether these are the steps of the paper."""
        return (self.solver, self.objective) == ("euler", "l2_squared")

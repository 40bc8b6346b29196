"""What the choice among steps has to hold."""

import scipy.stats

from boss_core.ode.schedule import HeldOut
from boss_core.search.choose import BLOCKS


def needed(rivals: int) -> float:
    """The standard errors that a gain has to exceed: Student's t, over the number of rivals."""
    return float(scipy.stats.t.ppf(1 - 0.025 / rivals, BLOCKS - 1))


def beyond_chance(found: HeldOut) -> bool:
    return found.rivals > 0 and found.gain > needed(found.rivals) * found.standard_error

"""The objectives of `boss_core.bellman.objectives` by name. Imports no torch."""

OBJECTIVES = ("l2_squared", "l2", "minimax", "gits")
GITS_GAMMA = 1.15

"""Offsets to the seed, so that noise is not shared where it must be apart: a schedule is not
judged on the noise it was searched on, nor a student on the noise it was trained on."""

COST = 1 << 32
TRAJECTORIES = 2 << 32
EVALUATE = 3 << 32
CHOOSE = 4 << 32

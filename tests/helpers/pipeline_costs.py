"""Calls of tiny pipelines, and their costs compared."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from boss_core.costs.matrix import CostMatrix
from boss_core.interop.diffusers_pipelines import sample_generators


def noise(samples: range, *shape: int) -> Tensor:
    """What diffusers draws with `sample_generators`."""
    return torch.cat([torch.randn(1, *shape, generator=g) for g in sample_generators(samples, 7)])


def call(prompts: dict[str, Any], samples: range) -> dict[str, Any]:
    return prompts | {"generator": sample_generators(samples, 7)}


def assert_same_costs(found: CostMatrix, wanted: CostMatrix, rtol: float) -> None:
    apart = np.triu(np.ones_like(wanted.cost, dtype=bool), k=2)
    np.testing.assert_allclose(found.cost[apart], wanted.cost[apart], rtol=rtol)
    assert (found.cost[~apart] == 0).all()
    assert (wanted.cost[apart] > 0).all()

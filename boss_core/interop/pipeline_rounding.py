"""How much of the costs of a pipeline in half precision is rounding, not the flow.

What a network rounds in its layers is another number at every state. Guidance adds two such
numbers, weighted by its scale: at a scale of 4 a velocity in bfloat16 has some 20 times the
variance of rounding that one without guidance has, and of the costs of the shortest steps, whose
velocities differ least, it is a quarter or more. The sum that is guidance, and the states, round
next to nothing: with them in float32 the costs stay as they are. So nothing outside the network
mends it, but it can be measured.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from boss_core.costs.gram import costs_of_gram
from boss_core.costs.matrix import CostMatrix
from boss_core.interop.pipeline_checks import run_walk
from boss_core.interop.recording import Walk

_POINTS = 8


def rounding_points(count: int) -> list[int]:
    """The grid points that rounding is measured at, evenly among ``count`` steps."""
    return sorted({k * count // _POINTS for k in range(_POINTS)})


def rounding_variance(
    pipeline: Any, walk: Walk, call: Mapping[str, Any]
) -> NDArray[np.float64] | None:
    """(n,): the mean squared distance, summed over the elements of a sample, of a walk's velocity
    at each grid point from that of its networks in float32 with the same weights; measured at a few
    points of the walk's first call, and between them in proportion. Zero in float32; None
    where the networks cannot be evaluated in float32 (memory, quantised weights).
    """
    steps = rounding_points(walk.count)
    floats = [w.dtype for net in walk.networks.values() for w in net.parameters()]
    if all(dtype in (torch.float32, torch.float64) for dtype in floats):
        return np.zeros(walk.count)
    points = [walk.points[k] for k in steps]
    exact = Walk(
        walk.times[[*steps, walk.count]], walk.networks, keep=range(len(points)), follow=points
    )
    try:
        with _in_float32(walk.networks.values()):
            run_walk(pipeline, exact, call)
    except (RuntimeError, TypeError, NotImplementedError):
        return None
    found = []
    for k, point in enumerate(points):
        errors = [
            (rounded.double() - other.double()).flatten(1)
            for rounded, other in zip(point.velocities, exact.points[k].velocities, strict=True)
        ]
        if walk.seen is not None:
            errors[0] *= walk.seen.flatten(1)
        found.append(float(sum(e.square().sum(dim=1).mean() for e in errors)))
    return np.interp(np.arange(walk.count), steps, found)


def without_rounding(matrix: CostMatrix, variance: NDArray[np.float64]) -> CostMatrix:
    """The costs as they would be without these roundings, taken as independent at each point:
    E|d_l|^2 is less by the variances at both ends of an increment, and E d_l d_{l+1} more by that
    between them. Standard errors and mean norms are left as they are."""
    n = len(matrix.timesteps) - 1
    noise = np.zeros(matrix.group_gram.shape[1:])
    for k in range(1, n):
        noise[k, k] = variance[k - 1] + variance[k]
        if k + 1 < n:
            noise[k, k + 1] = -variance[k]
    clean = replace(matrix, group_gram=matrix.group_gram - noise)
    return replace(clean, cost=costs_of_gram(clean.gram, matrix.timesteps))


@contextmanager
def _in_float32(networks: Iterable[torch.nn.Module]) -> Iterator[None]:
    """The networks, and what they are given, in float32 meanwhile. Weights come back as they
    were, bit for bit."""
    networks = list(networks)
    tensors = {
        id(tensor): (tensor, tensor.dtype)
        for network in networks
        for tensor in [*network.parameters(), *network.buffers()]
        if tensor.is_floating_point()
    }

    def widen(_: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return _widened(args), _widened(kwargs)

    with ExitStack() as stack:
        for tensor, dtype in tensors.values():
            stack.callback(_set_dtype, tensor, dtype)
            _set_dtype(tensor, torch.float32)
        for network in networks:
            handle = network.register_forward_pre_hook(widen, with_kwargs=True, prepend=True)
            stack.callback(handle.remove)
        yield


def _set_dtype(tensor: torch.Tensor, dtype: torch.dtype) -> None:
    tensor.data = tensor.data.to(dtype)


def _widened(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _widened(each) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_widened(each) for each in value)
    return value

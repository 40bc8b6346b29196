"""What follows the gradients of a step, as one CUDA graph: on a network of a few hundred tensors
clipping and Adam are that many launches, and keep the host busier than a small batch does the card.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from boss_core.errors import InputError


def graphed(
    update: Callable[[], Tensor], parameters: Sequence[nn.Parameter]
) -> Callable[[], Tensor]:
    """A function that does as ``update`` does, from its second call on by replaying it.

    update: reads the gradients of the parameters, and no number of the host that changes from call
        to call; what it returns is overwritten by the next call.

    InputError where other parameters have gradients than in the second call.
    """
    graph = torch.cuda.CUDAGraph()
    calls = 0
    trained: list[nn.Parameter] = []
    gradients: list[Tensor] = []  # where the graph finds them
    result = torch.empty(())

    def call() -> Tensor:
        nonlocal calls, trained, gradients, result
        calls += 1
        if calls == 1:  # what it starts up, as the libraries it uses, belongs in no graph
            return update()
        found = [p.grad for p in parameters if p.grad is not None]
        if calls == 2:
            trained = [p for p in parameters if p.grad is not None]
            gradients = [torch.zeros_like(p) for p in trained]
        if len(found) != len(trained):
            raise InputError(
                f"compile: true, but {len(found)} parameters have gradients in a step and"
                f" {len(trained)} had in one before; false needed for such a network"
            )
        torch._foreach_copy_(gradients, found)
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.grad = gradient
        if calls == 2:
            # Another thread may read batches meanwhile; torch's own stream may be another GPU's.
            stream = torch.cuda.Stream(trained[0].device)
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                result = update()  # only recorded
        graph.replay()
        return result

    return call

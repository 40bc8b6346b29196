"""Several processes that train one network: what they tell each other.

They are started by accelerate or torchrun, and joined by `accelerate.PartialState` or
`torch.distributed.init_process_group`; where neither was called there is one.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, distributed

from boss_core.errors import InputError
from boss_core.training.randomness import BatchShare


def own_share() -> BatchShare:
    """The share of this process in every batch; its rank 0 is the main process."""
    if not distributed.is_available() or not distributed.is_initialized():
        return BatchShare()
    return BatchShare(distributed.get_rank(), distributed.get_world_size())


def average(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its mean over all processes. They travel together, as one message."""
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    with _together():
        distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    parts = flat.split([tensor.numel() for tensor in tensors])
    means = [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]
    torch._foreach_copy_(list(tensors), means)  # one launch in place of one each


def wait() -> None:
    """Until all processes are here."""
    if own_share().of > 1:
        # NCCL would guess which GPU is meant, and say so.
        nccl = distributed.get_backend() == "nccl"
        with _together():
            distributed.barrier(device_ids=[torch.cuda.current_device()] if nccl else None)


def leave() -> None:
    """To be called where all processes have ended well; NCCL warns of those that go without."""
    if own_share().of > 1:
        distributed.destroy_process_group()


def total(value: float, device: torch.device) -> float:
    """The sum of a number over all processes, each of which gives its own."""
    if own_share().of == 1:
        return value
    found = torch.tensor(value, dtype=torch.float64, device=device)
    with _together():
        distributed.all_reduce(found)
    return float(found)


def gathered(text: str) -> list[str]:
    """What each process gives, by its rank."""
    share = own_share()
    if share.of == 1:
        return [text]
    found: list[str] = [""] * share.of
    with _together():
        distributed.all_gather_object(found, text)
    return found


def copy_from_main(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by that of the main process."""
    for tensor in tensors:
        sent = tensor.detach().contiguous()
        with _together():
            distributed.broadcast(sent, src=0)
        tensor.copy_(sent)


@contextmanager
def _together() -> Iterator[None]:
    """What all processes do at once: InputError where one of them is not there any more, as when
    its machine is lost. It is the first to say why, where it can."""
    try:
        yield
    except torch.OutOfMemoryError:  # of this process, which says so itself
        raise
    except RuntimeError as error:  # DistBackendError, too
        why = " ".join(str(error).split())[:160]
        raise InputError(
            f"training: another of its processes has ended, or cannot be reached ({why}); all of"
            " them started again go on from the last checkpoint"
        ) from error

"""Arrays whose rows training reads: on the device where they fit, else read ahead from the host."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from boss_core.training.randomness import BatchShare

# Of the device's memory that is free before training: the rest is for the network and its batch.
LARGEST_SHARE = 0.5
_AHEAD = 2  # batches

# The index of a step's rows, as for `DeviceRows.take`; depends on step and share alone.
IndexOf = Callable[[int, BatchShare], tuple[NDArray, ...]]


@dataclass(frozen=True)
class DeviceRows:
    """An array, (N, ...), whose rows come as tensors on a device.

    array: on the host, maybe memory-mapped.
    resident: the whole of it on the device; None where it is read from the host.
    """

    array: NDArray
    device: torch.device
    resident: Tensor | None = None

    @classmethod
    def of(cls, array: NDArray, device: torch.device, *, halve: bool = False) -> "DeviceRows":
        """On a GPU the array is copied there if it takes no more than `LARGEST_SHARE` of the
        memory that is free. ``halve``: float32 may lie there as float16 where only that fits."""
        if device.type != "cuda":
            return cls(array, device)
        limit = LARGEST_SHARE * torch.cuda.mem_get_info(device)[0]
        if array.nbytes <= limit:
            return cls(array, device, _copy(array, device, array.dtype))
        if halve and array.dtype == np.float32 and array.nbytes / 2 <= limit:
            return cls(array, device, _copy(array, device, np.dtype(np.float16)))
        return cls(array, device)

    def take(self, *index: NDArray) -> Tensor:
        """``array[index]`` on the device, float16 as float32. Integer arrays, as in numpy."""
        if self.resident is None:
            return to_device(np.ascontiguousarray(self.array[index]), self.device)
        taken = self.resident[tuple(to_device(part, self.device) for part in index)]
        return taken.float() if taken.dtype == torch.float16 else taken

    def batches(self, index_of: IndexOf) -> Callable[[int, BatchShare], Tensor]:
        """The rows of one step after another, as ``batch(step, share)``. From the memory of the
        host a thread reads them a few steps ahead, through pinned buffers."""
        if self.resident is not None or self.device.type != "cuda":
            return lambda step, share: self.take(*index_of(step, share))
        return _Ahead(self, index_of)


class _Ahead:
    """Reads the batches of the next steps while the device works on this one."""

    def __init__(self, rows: DeviceRows, index_of: IndexOf) -> None:
        self.rows, self.index_of = rows, index_of
        self.stream = torch.cuda.Stream(rows.device)
        self.reader = ThreadPoolExecutor(1, thread_name_prefix="rows")
        self.pending: dict[int, Future[tuple[Tensor, torch.cuda.Event]]] = {}

    def __call__(self, step: int, share: BatchShare) -> Tensor:
        for ahead in range(step, step + _AHEAD + 1):
            if ahead not in self.pending:
                self.pending[ahead] = self.reader.submit(self._read, ahead, share)
        batch, copied = self.pending.pop(step).result()
        current = torch.cuda.current_stream(self.rows.device)
        current.wait_event(copied)
        batch.record_stream(current)  # its memory is not for the other stream before it is used
        return batch

    def _read(self, step: int, share: BatchShare) -> tuple[Tensor, torch.cuda.Event]:
        read = np.ascontiguousarray(self.rows.array[self.index_of(step, share)])
        with torch.cuda.stream(self.stream):
            batch = to_device(read, self.rows.device)
            copied = torch.cuda.Event()
            copied.record(self.stream)
        return batch, copied


def to_device(array: NDArray, device: torch.device) -> Tensor:
    """On the device: from pinned memory where that is a GPU, so that nobody waits for it; on a CPU
    maybe the memory of the array itself."""
    tensor = torch.from_numpy(np.require(array, requirements="W"))
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def _copy(array: NDArray, device: torch.device, dtype: np.dtype) -> Tensor:
    """The array on the device, a part at a time: it may be larger than the host's memory."""
    kind = torch.from_numpy(np.empty(0, dtype)).dtype
    whole = torch.empty(array.shape, dtype=kind, device=device)
    rows = max(1, 2**26 // max(1, array[:1].nbytes))
    for start in range(0, len(array), rows):
        whole[start : start + rows].copy_(
            torch.from_numpy(np.array(array[start : start + rows], dtype=dtype))
        )
    return whole

"""What is raised where memory does not suffice: by a GPU, by Python, and by torch on a CPU."""

import torch

MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB."),
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
)

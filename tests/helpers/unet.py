"""A small U-Net."""

from boss_core.networks.unet import UNetConfig

CONFIG = UNetConfig(
    image_size=8, channels=1, base_channels=8, channel_multipliers=(1, 2), blocks=1,
    attention_sizes=(),
)  # fmt: skip

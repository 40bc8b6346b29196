"""A small ACE-Step that makes music of texts, whole: with its encoders and its decoder."""

from pathlib import Path

import diffusers as d
import torch

from tests.helpers.image_pipelines import scheduler
from tests.helpers.single_pipelines import ace_step
from tests.helpers.text_pipelines import qwen3


def write_music_pipeline(folder: Path) -> None:
    """8,000 values a second, of which a latent has 80; a call of 0.5 s takes little."""
    small = ace_step()
    torch.manual_seed(0)
    vae = d.AutoencoderOobleck(
        encoder_hidden_size=8, downsampling_ratios=[8, 10], channel_multiples=[1, 2],
        decoder_channels=8, decoder_input_channels=8, audio_channels=2, sampling_rate=8000,
    )  # fmt: skip
    parts = qwen3(16)
    d.AceStepPipeline(
        vae=vae.eval(),
        text_encoder=parts["text_encoder"].model,
        tokenizer=parts["tokenizer"],
        transformer=small.transformer,
        condition_encoder=small.condition_encoder,
        scheduler=scheduler(num_train_timesteps=1),
    ).save_pretrained(folder)

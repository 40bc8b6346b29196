"""A pipeline that makes music, from its folder to the page, where it can be heard."""

import base64
import html
import io
import re
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed (pip install .[diffusers])")

from diffusers import AceStepPipeline

from boss_core.interop.diffusers_schedulers import fixed_scheduler
from boss_core.ode.timesteps import uniform
from tests.helpers.music_pipeline import write_music_pipeline
from tests.helpers.tiny_pipelines import quiet

OPTIONS = [
    "--pipeline", "pipe", "--prompts", "prompts.txt", "--guidance", "3", "--dtype", "float32",
    "--call", "audio_duration=0.5", "--grid", "4", "--batch-size", "2", "--trajectories", "4",
    "--rank", "2", "--held-out", "2", "--iterations", "4", "--steps", "uniform", "--budget", "2",
    "--device", "cpu",
]  # fmt: skip
INSTRUMENTS = ["piano", "drums", "flute", "organ", "guitar", "choir", "violin", "harp"]


@pytest.mark.slow
def test_music_is_straightened_and_heard(
    boss: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    """Its lyrics are one for each text, so that a call has one text. Every sound
    on the page is there to play, and the teacher's is what a user hears of the pipeline."""
    write_music_pipeline(tmp_path / "pipe")
    (tmp_path / "prompts.txt").write_text("\n".join(INSTRUMENTS))
    code, out, err = boss("straighten", *OPTIONS, "--out", "fast")
    assert code == 0, err
    assert "takes no batch of prompts: one sample at a time" in out
    assert "fast/2: 2 network evaluations a sample" in out
    page = html.unescape((tmp_path / "fast" / "2" / "report.html").read_text())
    sounds = re.findall(r'<audio controls src="data:audio/wav;base64,([^"]+)"', page)
    assert len(sounds) == 2 * 3  # samples; teacher, guided pipeline and student
    assert "Listen to them." in page
    assert "Look at" not in page
    assert page.count("sound, 0.5 s at 8 kHz, 2 channels") == 2 * len(sounds)  # and as alt
    (seed, *_) = re.findall(r"manual_seed\((\d+)\)", page)
    expected = teacher_of(tmp_path / "pipe", INSTRUMENTS[-2], int(seed))
    with wave.open(io.BytesIO(base64.b64decode(sounds[0]))) as file:
        assert (file.getframerate(), file.getnchannels()) == (8000, 2)
        values = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32767.0
    assert np.abs(values.reshape(-1, 2).T - expected).max() < 1e-3


def teacher_of(folder: Path, prompt: str, seed: int) -> Any:
    """The music of the pipeline on the fine grid, (channels, N)."""
    pipeline = quiet(AceStepPipeline.from_pretrained(folder))
    pipeline.scheduler = fixed_scheduler(pipeline.scheduler, uniform(4))
    generator = torch.Generator().manual_seed(seed)
    found = pipeline(
        prompt, audio_duration=0.5, guidance_scale=3.0, num_inference_steps=4, generator=generator
    )
    return np.asarray(found.audios[0])

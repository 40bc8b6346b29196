"""What pipelines return becomes pictures of it: compared with what they return as PIL images."""

import base64
import io
import wave
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AudioPipelineOutput, ImagePipelineOutput
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder
from numpy.typing import NDArray
from PIL import Image

from flows.report.media import LARGEST, LOSSLESS, data_uri, pictures, sound_rate
from tests.helpers import odd_pipelines as odd
from tests.helpers import tiny_pipelines as tiny


def pixels(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image)


def call(pipeline: Any, arguments: dict[str, Any], kind: str) -> Any:
    generators = [torch.Generator().manual_seed(k) for k in range(2)]
    return pipeline(**arguments, generator=generators, num_inference_steps=2, output_type=kind)


def test_images_are_those_that_the_pipeline_returns_of_every_kind() -> None:
    pipeline = tiny.sd3()
    pipeline.scheduler.set_shift(1.0)
    arguments = tiny.sd3_prompts(range(2))
    expected = call(pipeline, arguments, "pil").images
    for kind in ("pil", "np", "pt"):
        found = pictures(call(pipeline, arguments, kind), 2)
        assert [len(of_sample) for of_sample in found] == [1, 1]
        for (picture,), image in zip(found, expected, strict=True):
            assert np.array_equal(pixels(picture.image), pixels(image)), kind
            assert picture.what == "16 × 16 pixels"
    assert not np.array_equal(pixels(expected[0]), pixels(expected[1]))


def test_a_contact_sheet_has_the_frames_of_the_video() -> None:
    pipeline = odd.wan_i2v()
    arguments = odd.wan_i2v_prompts(range(2)) | {"num_frames": 13}
    frames = call(pipeline, arguments, "pil").frames
    for kind in ("pil", "np", "pt"):
        found = pictures(call(pipeline, arguments, kind), 2)
        for (picture,), video in zip(found, frames, strict=True):
            assert picture.what == "8 of 13 frames of 32 × 32 pixels"
            assert picture.image.size == (4 * 33 - 1, 2 * 33 - 1)
            # 12/7 apart: 0, 1.7, 3.4, 5.1, 6.9, 8.6, 10.3, 12.
            for k, number in enumerate((0, 2, 3, 5, 7, 9, 10, 12)):
                y, x = 33 * (k // 4), 33 * (k % 4)
                shown = pixels(picture.image)[y : y + 32, x : x + 32]
                assert np.array_equal(shown, pixels(video[number])), (kind, number)


def test_a_video_with_sound_is_frames_and_a_spectrogram() -> None:
    pipeline = odd.ltx2()
    torch.manual_seed(0)
    pipeline.vocoder = LTX2Vocoder(
        in_channels=16,
        hidden_channels=8,
        upsample_kernel_sizes=[4, 4],
        upsample_factors=[2, 2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3, 5]],
        output_sampling_rate=24000,
    ).eval()
    output = call(pipeline, odd.ltx2_prompts(range(2)), "pil")
    rate = sound_rate(pipeline)
    assert rate == 24000
    length = output.audio.shape[-1]
    for k, (frames, sound) in enumerate(pictures(output, 2, rate)):
        width, height = output.frames[k][0].size
        assert frames.what == f"{len(output.frames[k])} frames of {width} × {height} pixels"
        shown = pixels(frames.image)[:height, :width]
        assert np.array_equal(shown, pixels(output.frames[k][0]))
        assert sound.what == f"sound, {length / 24000:.3g} s at 24 kHz, 2 channels"
    assert len(pictures(output, 2, rate, most=1)) == 1


def lines(picture: Image.Image) -> list[float]:
    """The brightest rows of a spectrogram, as shares of its height, from below."""
    values = pixels(picture.convert("RGB")).astype(int)
    column = values[:, values.shape[1] // 2]
    inside = np.flatnonzero(column.min(axis=1) < 200)  # the ground is white, the map is dark
    # The axes: the longest run of rows that are not white.
    runs = np.split(inside, np.flatnonzero(np.diff(inside) > 3) + 1)
    axes = max(runs, key=len)
    light = values[axes[0] : axes[-1] + 1, values.shape[1] // 2].sum(axis=1)
    light[[0, 1, -2, -1]] = 0  # where the map and the ground meet
    bright = np.flatnonzero(light > 0.6 * light.max())
    groups = np.split(bright, np.flatnonzero(np.diff(bright) > 3) + 1)
    return sorted(1 - float(group.mean() + 0.5) / len(light) for group in groups)


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_a_tone_is_a_line_at_its_frequency(dtype: torch.dtype | None) -> None:
    rate = 44100
    seconds = np.arange(2 * rate) / rate
    tones = (0.2531, 0.7)  # of half the rate, above which there is nothing
    waves = [0.5 * np.sin(2 * np.pi * tone * rate / 2 * seconds) for tone in tones]
    sounds: Any = np.stack([np.stack([wave, -wave]) for wave in waves])  # a mean would cancel
    if dtype is not None:
        sounds = torch.tensor(sounds, dtype=dtype)
    found = pictures(AudioPipelineOutput(audios=sounds), 2, rate)
    for tone, (picture,) in zip(tones, found, strict=True):
        assert picture.what == "sound, 2 s at 44.1 kHz, 2 channels"
        (line,) = lines(picture.image)
        assert line == pytest.approx(tone, abs=0.02)
    both = AudioPipelineOutput(audios=[0.5 * (waves[0] + waves[1])])
    ((picture,),) = pictures(both, 1)
    assert lines(picture.image) == pytest.approx(tones, abs=0.02)
    assert picture.what == "sound, 88200 samples, 1 channel"


def heard(sound: bytes) -> tuple[int, Any]:
    """The rate of a WAV file, and its values, (channels, N)."""
    with wave.open(io.BytesIO(sound)) as file:
        values = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32767.0
        return file.getframerate(), values.reshape(-1, file.getnchannels()).T


def test_a_sound_can_be_heard_where_its_rate_is_known() -> None:
    rate = 8000
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(11 * rate) / rate)
    loud = np.stack([tone, 4.0 * tone, tone])  # and three channels, which no browser plays
    ((picture,),) = pictures(AudioPipelineOutput(audios=loud[None]), 1, rate)
    assert picture.what == "sound, 11 s at 8 kHz, 3 channels, the first 10 s to hear"
    assert picture.sound is not None
    found, values = heard(picture.sound)
    assert (found, values.shape) == (rate, (2, 10 * rate))
    assert np.abs(values[0] - tone[: 10 * rate]).max() < 1 / 32767
    assert values[1].max() == 1.0
    ((silent,),) = pictures(AudioPipelineOutput(audios=loud[None]), 1)
    assert silent.sound is None
    ((image,),) = pictures(AudioPipelineOutput(audios=np.full((1, 2, 900), np.nan)), 1, rate)
    assert image.sound is not None
    assert not heard(image.sound)[1].any()


def test_silence_and_a_click_are_sounds_too() -> None:
    click = np.zeros((2, 1, 50))
    click[1, 0, 20] = 1.0
    assert [len(p) for p in pictures(AudioPipelineOutput(audios=click), 2, 8000)] == [1, 1]
    assert pictures(AudioPipelineOutput(audios=np.full((1, 2, 900), np.nan)), 1)[0]


@dataclass
class Sounding:
    sample_rate: int


def test_the_rate_is_where_pipelines_have_it() -> None:
    assert sound_rate(Sounding(48000)) == 48000  # ACE-Step
    assert sound_rate(tiny.sd3()) is None


def test_layers_and_single_samples_and_tuples() -> None:
    draw = np.random.default_rng(0)
    layers = [
        Image.fromarray(draw.integers(0, 256, (8, 8, 4), dtype=np.uint8), "RGBA") for _ in range(3)
    ]
    ((sheet,),) = pictures(ImagePipelineOutput(images=[layers]), 1)
    assert sheet.what == "3 pictures of 8 × 8 pixels"
    frames = [layer.convert("RGB") for layer in layers]
    # A pipeline of one video at a time returns it without a list around.
    unbatched = type("Output", (), {"frames": frames, "sound": torch.zeros(2, 500)})()
    ((video, sound),) = pictures(unbatched, 1)
    assert video.what == "3 frames of 8 × 8 pixels"
    assert sound.what == "sound, 500 samples, 2 channels"
    assert pictures(([frames, frames], np.zeros((2, 1, 500))), 2)[1][0].what == video.what
    assert [len(p) for p in pictures((frames[:2],), 2)] == [1, 1]


@pytest.mark.parametrize(
    "output",
    [
        None,
        (),
        object(),
        ImagePipelineOutput(images=None),
        ImagePipelineOutput(images=[]),
        ImagePipelineOutput(images=np.zeros((2, 16, 64, 64))),  # latents
        ImagePipelineOutput(images=np.zeros((3, 8, 8, 3))),  # of three
        AudioPipelineOutput(audios=["file.wav", "other.wav"]),
        ({"a": 1}, [1, 2]),
    ],
)
def test_what_is_no_picture_shows_nothing(output: Any) -> None:
    assert pictures(output, 2) == [(), ()]


def decoded(uri: str) -> Image.Image:
    head, _, content = uri.partition(",")
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    assert head == f"data:image/{str(image.format).lower()};base64"
    return image


def test_embedded_pictures_are_exact_where_small_and_light_where_large() -> None:
    draw = np.random.default_rng(0)
    small = Image.fromarray(draw.integers(0, 256, (200, 300, 3), dtype=np.uint8))
    assert small.width * small.height <= LOSSLESS
    assert np.array_equal(pixels(decoded(data_uri(small))), pixels(small))
    # Noise is the worst that an image can be: twelve have to stay below 5 MB.
    large = Image.fromarray(draw.integers(0, 256, (1024, 2048, 4), dtype=np.uint8))
    uri = data_uri(large)
    assert 12 * len(uri) < 5e6
    shown = decoded(uri)
    assert shown.width * shown.height <= LARGEST
    assert shown.width / shown.height == pytest.approx(2, rel=0.01)
    assert decoded(data_uri(Image.new("L", (4000, 2)))).size == (4000, 2)

"""What a diffusers pipeline returned, as pictures: images, sheets of frames, spectrograms of sound.

Pipelines name and lay it out in ways of their own: ``images``, ``frames``, ``audios``; lists of PIL
images, arrays with the channels last, tensors with the channels first.
"""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from flows.report.wav import LONGEST, wav

FRAMES, COLUMNS = 8, 4  # of a contact sheet
# Pixels of an embedded picture: up to the first as it is, up to the second as JPEG, else scaled.
LOSSLESS, LARGEST = 2**16, 2**18
_FIELDS = {
    "image": ("images", "image"),
    "frames": ("frames", "videos", "video"),
    "sound": ("audios", "audio", "sound"),
}


@dataclass(frozen=True)
class Picture:
    """image: in its own size. what: it shows, in words, with the true size. several: a contact
    sheet. sound: what it is the spectrogram of, as a WAV file, where its rate is known."""

    image: Image.Image
    what: str
    several: bool = False
    sound: bytes | None = None


def pictures(
    output: Any, count: int, rate: int | None = None, *, most: int | None = None
) -> list[tuple[Picture, ...]]:
    """The pictures of each of the samples that one call of a pipeline returned: of most one, of
    video with sound two; none where nothing in it is known to be images, frames or sound.

    count: the samples of the call. rate: of the sound, Hz; see `sound_rate`. most: of the first
    so many samples only.
    """
    wanted = count if most is None else min(count, most)
    found: list[tuple[Picture, ...]] = [()] * wanted
    for kind, content in _contents(output):
        samples = _samples(content, count, kind)
        if samples is None:
            continue
        for k in range(wanted):
            is_sound = kind == "sound"
            picture = _sound(samples[k], rate) if is_sound else _sheet(samples[k], kind)
            if picture is not None:
                found[k] = (*found[k], picture)
    return found


def sound_rate(pipeline: Any) -> int | None:
    """The samples a second of the sound that a pipeline makes, where it says so."""
    for part in ("vocoder", "sound_tokenizer", "vae", ""):
        holder = getattr(pipeline, part, None) if part else pipeline
        for place in (getattr(holder, "config", None), holder):
            for name in ("output_sampling_rate", "sampling_rate", "sample_rate"):
                value = getattr(place, name, None)
                if isinstance(value, int | float) and value > 0:
                    return int(value)
    return None


def data_uri(image: Image.Image, *, lossless: bool = False) -> str:
    """A picture for a page that needs no other file; a large one scaled, and as JPEG, unless it is
    to stay as it is."""
    buffer = io.BytesIO()
    pixels = image.width * image.height
    if lossless or pixels <= LOSSLESS:
        image.save(buffer, format="PNG")
        kind = "png"
    else:
        scale = min(1.0, (LARGEST / pixels) ** 0.5)
        size = max(1, int(image.width * scale)), max(1, int(image.height * scale))
        _opaque(image).resize(size, Image.Resampling.LANCZOS).save(
            buffer, format="JPEG", quality=88
        )
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def sound_uri(sound: bytes) -> str:
    """A WAV file for a page that needs no other file."""
    return f"data:audio/wav;base64,{base64.b64encode(sound).decode()}"


def _contents(output: Any) -> Iterator[tuple[str, Any]]:
    """The kind of each part of an output, and what it holds."""
    if isinstance(output, tuple):  # without names: by what is in them
        for part in output:
            kind = _kind(part)
            if kind is not None:
                yield kind, part
        return
    for kind, names in _FIELDS.items():
        for name in names:
            content = getattr(output, name, None)
            if content is not None:
                yield kind, content
                break


def _kind(part: Any) -> str | None:
    """What a part without a name looks like."""
    if isinstance(part, list) and part:
        inner = part[0]
        if isinstance(inner, Image.Image):
            return "image"
        if isinstance(inner, list) and inner and isinstance(inner[0], Image.Image):
            return "frames"
        return None
    if isinstance(part, np.ndarray | torch.Tensor):
        return {2: "sound", 3: "sound", 4: "image", 5: "frames"}.get(part.ndim)
    return None


def _samples(content: Any, count: int, kind: str) -> Any:
    """What each sample has; None where that is not to be told."""
    if isinstance(content, Image.Image):
        content = [content]
    if not isinstance(content, list | np.ndarray | torch.Tensor):
        return None
    # Some pipelines make one sample at a time, and return it without a list around it.
    single = {"image": 3, "frames": 4, "sound": 2}[kind]
    if count == 1 and isinstance(content, np.ndarray | torch.Tensor) and content.ndim <= single:
        return [content]
    if kind == "frames" and count == 1 and len(content) > 1:
        return [content]
    return content if len(content) == count else None


def _sheet(sample: Any, kind: str) -> Picture | None:
    """An image as it is; several frames, or layers, as a contact sheet."""
    several = isinstance(sample, list) or getattr(sample, "ndim", 0) == 4
    many = sample if several else [sample]
    if len(many) == 0:
        return None
    numbers = np.unique(np.linspace(0, len(many) - 1, FRAMES).round().astype(int))
    images = [_image(many[int(k)]) for k in numbers]
    shown = [image for image in images if image is not None]
    if len(shown) < len(images):
        return None
    width, height = shown[0].size
    if len(many) == 1:
        return Picture(shown[0], f"{width} × {height} pixels")
    name = "frames" if kind == "frames" else "pictures"
    some = f"{len(many)}" if len(shown) == len(many) else f"{len(shown)} of {len(many)}"
    what = f"{some} {name} of {width} × {height} pixels"
    return Picture(_contact_sheet(shown), what, several=True)


def _contact_sheet(images: Sequence[Image.Image]) -> Image.Image:
    """Frames in rows, a pixel apart, in the order of reading."""
    width = max(image.width for image in images)
    height = max(image.height for image in images)
    columns = min(COLUMNS, len(images))
    rows = -(-len(images) // columns)
    size = columns * (width + 1) - 1, rows * (height + 1) - 1
    sheet = Image.new("RGB", size, "white")
    for k, image in enumerate(images):
        row, column = divmod(k, columns)
        sheet.paste(_opaque(image), (column * (width + 1), row * (height + 1)))
    return sheet


def _image(found: Any) -> Image.Image | None:
    """One image, of whatever kind it was; None for what is none."""
    if isinstance(found, Image.Image):
        return found if found.mode in ("L", "RGB", "RGBA") else found.convert("RGB")
    if not isinstance(found, np.ndarray | torch.Tensor):
        return None
    values = _array(found)
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3:
        return None
    first = isinstance(found, torch.Tensor) or values.shape[-1] not in (1, 3, 4)
    if first and values.shape[0] in (1, 3, 4):
        values = values.transpose(1, 2, 0)
    if values.shape[-1] not in (1, 3, 4):
        return None
    if values.dtype != np.uint8:
        values = (np.nan_to_num(values).clip(0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values)


def _opaque(image: Image.Image) -> Image.Image:
    """On white, where it is transparent."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    ground = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(ground, image).convert("RGB")


def _sound(sample: Any, rate: int | None) -> Picture | None:
    """(channels, N) or (N,) values in [-1, 1] as a spectrogram."""
    if not isinstance(sample, np.ndarray | torch.Tensor):
        return None
    wave = np.nan_to_num(np.atleast_2d(_array(sample)).astype(np.float64))
    if wave.ndim != 2 or wave.shape[-1] < 2:
        return None
    if wave.shape[0] > wave.shape[1]:  # time first, as files of sound have it
        wave = wave.T
    from flows.report.plots import spectrogram  # matplotlib takes a second

    channels, length = wave.shape
    of = f"{channels} channel{'s' if channels > 1 else ''}"
    long = f"{length} samples" if rate is None else f"{length / rate:.3g} s at {rate / 1000:g} kHz"
    # Browsers play one channel or two.
    heard = None if rate is None else wav(wave[:2], rate)
    cut = "" if rate is None or length / rate <= LONGEST else f", the first {LONGEST:g} s to hear"
    return Picture(spectrogram(wave, rate), f"sound, {long}, {of}{cut}", sound=heard)


def _array(found: Any) -> NDArray[Any]:
    if isinstance(found, torch.Tensor):
        found = found.detach().cpu()
        found = (found.float() if found.is_floating_point() else found).numpy()
    return np.asarray(found)

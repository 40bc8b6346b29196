"""Sound as a file that browsers play."""

import io
import wave

import numpy as np
from numpy.typing import NDArray

LONGEST = 10.0  # seconds: a page has some ten sounds, of 2 MB each then


def wav(sound: NDArray[np.float64], rate: int) -> bytes:
    """The first `LONGEST` seconds of a sound as a WAV file of 16 bits.

    sound: (channels, N) values in [-1, 1]; what is beyond is cut. rate: values a second.
    """
    heard = sound[:, : int(LONGEST * rate)].clip(-1.0, 1.0)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(len(heard))
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((heard.T * 32767.0).round().astype("<i2").tobytes())
    return buffer.getvalue()

"""The batches of flow matching: drawn from seed and step alone, and the loss by its definition."""

import numpy as np
import pytest
import torch
from torch import Tensor

from boss_core.io.pixels import from_uint8
from boss_core.ode.noise import sample_noise
from boss_core.training.flow_matching import LabelledImages, flow_matching_loss
from boss_core.training.randomness import BatchShare, device_generator

CPU = torch.device("cpu")
SHAPE = (1, 2, 3)
PIXELS = np.arange(20 * 6, dtype=np.uint8).reshape(20, *SHAPE)
LABELS = np.arange(20, dtype=np.int64)


class Seen:
    """A velocity of zero, which keeps what it was called with."""

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        self.x, self.t, self.labels = x.clone(), t.clone(), labels
        return torch.zeros_like(x)


def test_the_loss_by_its_definition() -> None:
    x0, x1, t = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -2.0]]), torch.tensor([0.25])
    seen = Seen()
    loss = flow_matching_loss(seen, x1, x0, t)
    assert seen.x.tolist() == [[1.5, 1.0]]
    assert float(loss) == (2.0**2 + 4.0**2) / 2


@pytest.mark.parametrize("flip", [False, True])
def test_a_batch_is_of_images_with_their_own_labels(flip: bool) -> None:
    images = LabelledImages.of(PIXELS, LABELS, CPU)
    loss = images.training_loss(seed=3, batch_size=64, flip=flip)
    seen, mirrored = Seen(), 0
    value = loss(seen, 5, BatchShare())
    again = Seen()
    assert float(loss(again, 5, BatchShare())) == float(value)
    assert torch.equal(again.x, seen.x)
    assert not torch.equal(_x(loss, 6), seen.x)
    assert seen.labels is not None
    generator = device_generator(3, 5, CPU)
    noise = torch.randn((64, *SHAPE), generator=generator)
    assert torch.equal(torch.rand(64, generator=generator), seen.t)
    for x, t, eps, label in zip(seen.x, seen.t, noise, seen.labels, strict=True):
        image = from_uint8(torch.from_numpy(PIXELS[label]))
        plain = torch.lerp(eps, image, t)
        other = torch.lerp(eps, image.flip(-1), t)
        assert torch.equal(x, plain) or (flip and torch.equal(x, other))
        mirrored += not torch.equal(x, plain)
    assert mirrored == 0 if not flip else 16 < mirrored < 48


def test_the_shares_of_two_processes_are_the_batch() -> None:
    loss = LabelledImages.of(PIXELS, LABELS, CPU).training_loss(seed=0, batch_size=8, flip=True)
    whole = loss(Seen(), 1, BatchShare())
    parts = [loss(Seen(), 1, BatchShare(rank, 2)) for rank in range(2)]
    assert float(whole) == pytest.approx(float(sum(parts)) / 2, rel=1e-6)


def test_validation_sees_the_first_images_at_fixed_times() -> None:
    images = LabelledImages.of(PIXELS, None, CPU)
    loss, seen = images.validation_loss(seed=7, most=4), Seen()
    first = loss(seen)
    assert seen.t.tolist() == [0.125, 0.375, 0.625, 0.875]
    assert seen.labels is None
    target = from_uint8(torch.from_numpy(PIXELS[:4])) - sample_noise(range(4), SHAPE, 7)
    assert first == pytest.approx(float((target**2).mean()), rel=1e-6)
    assert loss(Seen()) == first


def _x(loss, step: int) -> Tensor:
    seen = Seen()
    loss(seen, step, BatchShare())
    return seen.x

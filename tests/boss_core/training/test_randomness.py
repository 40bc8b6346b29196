"""Random numbers of a training: of its seed and step alone."""

import numpy as np
import torch

from boss_core.training.randomness import BatchShare, device_generator, step_generator


def test_random_numbers_depend_on_seed_and_step_alone() -> None:
    def of_host(seed: int, step: int) -> np.ndarray:
        return step_generator(seed, step).random(4)

    def of_device(seed: int, step: int) -> np.ndarray:
        return torch.randn(4, generator=device_generator(seed, step, torch.device("cpu"))).numpy()

    for draw in (of_host, of_device):
        first = draw(3, 5)
        draw(3, 4)
        assert np.array_equal(draw(3, 5), first)
        others = [draw(3, 6), draw(4, 5), draw(2**32 - 1, 5), draw(3, 2**31)]
        assert not any(np.array_equal(other, first) for other in others)


def test_shares_make_up_the_batch() -> None:
    batch = np.arange(12)
    assert [BatchShare(rank, 3).take(batch).tolist() for rank in range(3)] == [
        [0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11],
    ]  # fmt: skip
    assert np.array_equal(BatchShare().take(batch), batch)

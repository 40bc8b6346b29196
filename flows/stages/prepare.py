"""Data source to ``data/{train,test}.npy`` (uint8, NCHW), labels, and a card."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from boss_core.data import digits, find_images
from boss_core.files import new_array, replacing_folder
from flows import paths
from flows.config import Params
from flows.progress import progress
from flows.records import write_json
from flows.runtime import run_stage


def main(params: Params) -> None:
    read: Callable[[int], NDArray[np.uint8]]
    labels: NDArray[np.int64] | None
    source = params.data.path if params.data.source == "folder" else params.data.source
    if source == "digits":
        images, labels = digits()
        shape, read, count = images.shape[1:], images.__getitem__, len(images)
    else:
        folder = find_images(Path(source))
        shape, labels, read, count = folder.shape, folder.labels, folder.read, len(folder.files)

    order = np.random.default_rng(params.seed).permutation(count)
    held_out = max(1, round(count * params.data.test_fraction))
    splits = {"test": order[:held_out], "train": order[held_out:]}
    with (
        replacing_folder(paths.DATA) as folder_out,
        progress("prepare", count, "images") as advance,
    ):
        for split, indices in splits.items():
            with new_array(folder_out / f"{split}.npy", (len(indices), *shape), np.uint8) as out:
                for row, index in enumerate(indices):
                    out[row] = read(int(index))
                    advance(1)
            if labels is not None:
                np.save(folder_out / f"{split}_labels.npy", labels[indices])
        write_json(
            folder_out / "card.json",
            {
                "source": source,
                "shape": list(shape),
                "classes": None if labels is None else int(labels.max()) + 1,
                "train": len(splits["train"]),
                "test": len(splits["test"]),
            },
        )


if __name__ == "__main__":
    run_stage(main)

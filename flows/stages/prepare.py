"""Data source to ``data/{train,test}.npy`` (uint8, NCHW), labels, and a card."""

import mmap
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from boss_core.data.images import ImageSource, Shape, image_shape, read_images
from boss_core.io.files import new_array, replacing_folder
from flows import paths
from flows.config import Params
from flows.progress import progress
from flows.records.json_files import write_json
from flows.records.sources import open_source, source_name
from flows.stages.runner import run_stage

_UNMAP_EVERY = 16 << 20  # bytes written


def main(params: Params) -> None:
    if params.data.source == "none":
        with replacing_folder(paths.DATA) as folder:
            nothing = {"shape": None, "classes": None, "train": 0, "test": 0}
            write_json(folder / "card.json", {"source": source_name(params.data), **nothing})
        return
    source = open_source(params.data)
    size, labels = params.data.image_size, source.labels
    for remark in source.remarks:
        print(f"prepare: {remark}", flush=True)
    if source.shape is None:
        with progress("prepare: sizes", len(source), "images") as advance:
            shape = image_shape(source, size, advance)
    else:
        shape = image_shape(source, size)

    order = np.random.default_rng(params.seed).permutation(len(source))
    held_out = max(1, round(len(source) * params.data.test_fraction))
    splits = {"test": order[:held_out], "train": order[held_out:]}
    with replacing_folder(paths.DATA) as folder:
        write_splits(folder, source, shape, splits)
        if labels is not None:
            for split, indices in splits.items():
                np.save(folder / f"{split}_labels.npy", labels[indices])
        write_json(
            folder / "card.json",
            {
                "source": source_name(params.data),
                "shape": list(shape),
                "classes": None if labels is None else int(labels.max()) + 1,
                "train": len(splits["train"]),
                "test": len(splits["test"]),
            },
        )


def write_splits(
    folder: Path, source: ImageSource, shape: Shape, splits: dict[str, NDArray[np.int64]]
) -> None:
    """Each split's images to ``<split>.npy``, in the order of its indices.

    They are read in the order of storage, once, and each written to its place.
    """
    place = np.empty((len(source), 2), np.int64)  # split and row of each image
    for k, indices in enumerate(splits.values()):
        place[indices] = np.stack([np.full(len(indices), k), np.arange(len(indices))], axis=1)
    with ExitStack() as stack:
        # All are allocated before any image is decoded, so a full disk shows at once.
        arrays = [
            stack.enter_context(new_array(folder / f"{name}.npy", (len(rows), *shape), np.uint8))
            for name, rows in splits.items()
        ]
        advance = stack.enter_context(progress("prepare", len(source), "images"))
        written = 0
        for (split, row), pixels in zip(place, read_images(source, shape), strict=True):
            arrays[split][row] = pixels
            advance(1)
            written += pixels.nbytes
            if written >= _UNMAP_EVERY:
                _unmap(arrays)
                written = 0


def _unmap(arrays: list[NDArray]) -> None:
    # Written pages stay with the kernel, which puts them on disk in its own time; as long as
    # they are mapped, they count as this process's memory.
    for array in arrays:
        if isinstance(array.base, mmap.mmap):
            array.base.madvise(mmap.MADV_DONTNEED)


if __name__ == "__main__":
    run_stage(main)

"""NumPy's files: what are images, and what cannot serve."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from boss_core.data.arrays import npy, npz
from boss_core.data.parquet import parquet
from boss_core.errors import InputError
from tests.helpers.data_sets import read
from tests.helpers.encoded import encode, noise


def test_many_identities_are_classes_of_a_large_set(tmp_path: Path) -> None:
    """Above 65,536 as long as there are as many images, in shards of fewer."""
    content = encode(noise(1, (2, 2))[0], "PNG")
    for shard in range(2):
        labels = np.arange(40_000) + 40_000 * shard
        table = pa.table({"image": [content] * 40_000, "label": labels})
        pq.write_table(table, tmp_path / f"{shard}.parquet")
    source = parquet(tmp_path, "image", "label")
    assert source.labels is not None
    assert source.labels.max() == 79_999


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (np.zeros((4, 8, 8, 3), np.float32), r"images\.npy: dtype float32; uint8 "),
        (np.zeros((8, 8), np.uint8), r"images\.npy: shape \(8, 8\); uint8 \(N, H, W\), "),
        (np.zeros((4, 8, 8, 4), np.uint8), r"shape \(4, 8, 8, 4\); .* C 1 or 3, needed"),
        (np.zeros((0, 8, 8, 3), np.uint8), r"shape \(0, 8, 8, 3\)"),
        (np.asfortranarray(np.zeros((4, 8, 8), np.uint8)), r"in Fortran's order; save np\."),
        (np.array([{}, {}]), "dtype object"),
    ],
)
def test_arrays_that_are_no_images(tmp_path: Path, images: NDArray, says: str) -> None:
    np.save(tmp_path / "images.npy", images)
    with pytest.raises(InputError, match=says):
        npy(tmp_path)


def test_npy_files_that_cannot_serve(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"images\.npy: no such file; a folder with images\.npy"):
        npy(tmp_path)
    path = tmp_path / "images.npy"
    np.save(path, noise(4, (8, 8)))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(InputError, match=r"truncated: 383 bytes; 384 needed for \(4, 8, 8\)"):
        npy(tmp_path)
    path.write_bytes(b"not an array")
    with pytest.raises(InputError, match=r"images\.npy: truncated or not an \.npy array"):
        npy(tmp_path)
    path.write_bytes(whole)
    np.save(tmp_path / "labels.npy", np.arange(5))
    with pytest.raises(InputError, match=r"labels\.npy: shape \(5,\) for 4 images; one label"):
        npy(tmp_path)
    (tmp_path / "labels.npy").write_bytes(b"")
    with pytest.raises(InputError, match=r"labels\.npy: truncated or not an array"):
        npy(tmp_path)


def test_npz_files_that_cannot_serve(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with pytest.raises(InputError, match=r"a\.npz: no such file; an \.npz file needed"):
        npz(path)
    np.savez(path, x=noise(4, (8, 8)), y=np.arange(4))
    with pytest.raises(InputError, match="no member images or arr_0; its members: x, y"):
        npz(path)
    np.savez(path, images=noise(4, (8, 8)).astype(float))
    with pytest.raises(InputError, match=r"a\.npz: images: dtype float64; uint8 "):
        npz(path)
    np.savez(path, noise(4, (8, 8)), np.arange(3))
    with pytest.raises(InputError, match=r"a\.npz: arr_1: shape \(3,\) for 4 images"):
        npz(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"a\.npz: truncated or not an \.npz file"):
        npz(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_altered_npz_is_found_while_reading(tmp_path: Path, save) -> None:
    path = tmp_path / "a.npz"
    save(path, images=noise(200, (32, 32)))
    content = bytearray(path.read_bytes())
    content[150_000] ^= 255
    path.write_bytes(content)
    source = npz(path)
    with pytest.raises(InputError, match=r"a\.npz: images: truncated or altered"):
        read(source)

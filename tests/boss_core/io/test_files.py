"""Files that are written whole or not at all."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from boss_core.io.files import new_array, replacing_folder, sha256, write_files


def test_a_folder_that_fails_leaves_the_last_one(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("good")
    failing = pytest.raises(ZeroDivisionError)
    with failing, replacing_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("half")
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "a").read_text() == "good"
    with replacing_folder(tmp_path / "out") as folder:
        (folder / "b").write_text("whole")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b"]


def test_files_that_cannot_all_be_written_leave_all_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"before")
    (tmp_path / ".b.part").mkdir()  # where the second would be written
    with pytest.raises(OSError, match="Is a directory"):
        write_files(tmp_path, {"a": b"after", "b": b"x"})
    assert (tmp_path / "a").read_bytes() == b"before"
    assert not (tmp_path / "b").exists()


def test_an_array_appears_when_it_is_full(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    with new_array(path, (3, 2), "float32") as array:
        assert not path.exists()
        array[:] = np.arange(6).reshape(3, 2)
    assert np.array_equal(np.load(path), [[0, 1], [2, 3], [4, 5]])
    assert sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()

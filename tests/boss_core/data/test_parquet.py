"""Parquet files: hidden ones, and what cannot serve."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from boss_core.data.images import image_shape
from boss_core.data.parquet import parquet
from boss_core.errors import InputError
from tests.helpers.data_sets import read
from tests.helpers.encoded import encode, noise


def test_hidden_parquet_files_are_left_out(tmp_path: Path) -> None:
    table = pa.table({"image": [encode(noise(1, (8, 8))[0], "PNG")]})
    for name in ("a.parquet", "b.PARQUET", ".ipynb_checkpoints/a.parquet", ".cache/a.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / name)
    assert len(parquet(tmp_path, "image", None)) == 2


def test_parquet_files_that_cannot_serve(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no \.parquet files in it; at least one needed"):
        parquet(tmp_path, "image", None)
    path = tmp_path / "a.parquet"
    with pytest.raises(InputError, match=r"a\.parquet: no such file or folder"):
        parquet(path, "image", None)
    encoded = [encode(image, "PNG") for image in noise(40, (9, 9, 3))]
    table = pa.table({"img": encoded, "label": [*range(39), None], "text": ["a"] * 40})
    pq.write_table(table, path)
    with pytest.raises(InputError, match=r"no column image; its columns: img, label, text$"):
        parquet(path, "image", None)
    with pytest.raises(InputError, match=r"no column y; .*label_column: null for none"):
        parquet(path, "img", "y")
    with pytest.raises(InputError, match="column text is string; encoded images, as bytes or"):
        parquet(path, "text", None)
    with pytest.raises(InputError, match=r"a\.parquet: column label: 1 empty; a label a row"):
        parquet(path, "img", "label")
    with pytest.raises(InputError, match="column text: dtype object; integer labels needed"):
        parquet(path, "img", "text")
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    with pytest.raises(InputError, match=r"a\.parquet: truncated or not a Parquet file"):
        parquet(path, "img", None)
    path.write_bytes(whole[:200] + bytes(3000) + whole[3200:])
    source = parquet(path, "img", None)  # the footer is whole
    with pytest.raises(InputError, match=r"a\.parquet: .*truncated or not"):
        read(source)
    pq.write_table(pa.table({"img": [*encoded[:2], b"GIF?"]}), path)
    with pytest.raises(InputError, match=r"a\.parquet: row 2: truncated or not an image"):
        image_shape(parquet(path, "img", None))
    pq.write_table(pa.table({"img": [{"bytes": None, "path": "b.png"}]}), path)
    schema = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = pa.array([{"bytes": None, "path": "b.png"}], schema)
    pq.write_table(pa.table({"img": rows}), path)
    with pytest.raises(InputError, match="row 0: no bytes in column img; images inside the file"):
        image_shape(parquet(path, "img", None))
    pq.write_table(pa.table({"img": pa.array([], pa.binary())}), path)
    with pytest.raises(InputError, match=r"a\.parquet: no rows; at least one image needed"):
        parquet(path, "img", None)

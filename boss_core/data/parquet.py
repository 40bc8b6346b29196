"""Parquet files with encoded images, laid out as Hugging Face's data sets are."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from boss_core.data.files import visible_files
from boss_core.data.images import ImageSource, StoredImage, check_labels
from boss_core.errors import InputError

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

_ROWS = 16  # decoded at a time
_BUFFER = 1 << 20  # bytes read at a time


def parquet(path: Path, image_column: str, label_column: str | None) -> ImageSource:
    """The images of a Parquet file, or of all ``*.parquet`` files below a folder, sorted,
    hidden ones left out.

    The image column holds encoded files (PNG, JPEG, ...), as bytes or as a struct with a field
    ``bytes``; the label column integers. ``label_column=None``: no labels. Raises InputError when
    a file is truncated, has no such column, or has it in another type.
    """
    files = [path]
    if path.is_dir():
        files = sorted(p for p in visible_files(path) if p.suffix.lower() == ".parquet")
    if not files:
        raise InputError(f"{path}: no .parquet files in it; at least one needed")
    counts, labels, leaf = [], {}, image_column
    for file in files:
        with _opened(file) as table:
            counts.append(table.metadata.num_rows)
            leaf = _image_leaf(table.schema_arrow, image_column, file)
            if label_column is not None:
                _check_column(table.schema_arrow, label_column, file, "label_column: null")
                column = table.read(columns=[label_column]).column(0)
                name = f"{file}: column {label_column}"
                if column.null_count:
                    raise InputError(f"{name}: {column.null_count} empty; a label a row needed")
                labels[name] = column.to_numpy()
    found = [
        check_labels(of_file, count, name, images=sum(counts))
        for (name, of_file), count in zip(labels.items(), counts, strict=False)
    ]
    if not sum(counts):
        raise InputError(f"{path}: no rows; at least one image needed")

    def images() -> Iterator[StoredImage]:
        for file in files:
            row = 0
            with _opened(file) as table:
                for batch in table.iter_batches(_ROWS, columns=[leaf]):
                    column = batch.column(0)
                    content = column if leaf == image_column else column.field("bytes")
                    for encoded in content.to_pylist():
                        if encoded is None:
                            raise InputError(
                                f"{file}: row {row}: no bytes in column {image_column}; images"
                                " inside the file, not paths, needed"
                            )
                        yield StoredImage(f"{file}: row {row}", partial(_open, encoded))
                        row += 1

    return ImageSource(sum(counts), np.concatenate(found) if found else None, images)


def _open(encoded: bytes) -> Image.Image:
    return Image.open(BytesIO(encoded))


@contextmanager
def _opened(file: Path) -> "Iterator[pyarrow.parquet.ParquetFile]":
    import pyarrow
    import pyarrow.parquet

    if not file.is_file():
        raise InputError(f"{file}: no such file or folder; Parquet files needed")
    try:
        # By default whole row groups are read at once; like this, a page or two is in memory.
        options = {"buffer_size": _BUFFER, "pre_buffer": False}
        with pyarrow.parquet.ParquetFile(file, **options) as table:
            yield table
    except (pyarrow.ArrowException, OSError) as error:
        message = " ".join(str(error).split())
        raise InputError(f"{file}: truncated or not a Parquet file ({message})") from error


def _check_column(schema: "pyarrow.Schema", name: str, file: Path, otherwise: str = "") -> None:
    if name not in schema.names:
        raise InputError(
            f"{file}: no column {name}; its columns: {', '.join(schema.names)}"
            + (f" ({otherwise} for none)" if otherwise else "")
        )


def _image_leaf(schema: "pyarrow.Schema", name: str, file: Path) -> str:
    """The path of the column that holds the encoded images: ``name`` or ``name.bytes``."""
    import pyarrow

    _check_column(schema, name, file)
    kind, leaf = schema.field(name).type, name
    if pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind, leaf = kind.field("bytes").type, f"{name}.bytes"
    if not (pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)):
        raise InputError(
            f"{file}: column {name} is {kind}; encoded images, as bytes or as a struct with bytes,"
            " needed"
        )
    return leaf

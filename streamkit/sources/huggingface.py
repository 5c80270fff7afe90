"""What Hugging Face's `datasets` says beside the rows: splits in the names of files, names of classes in Parquet's metadata.

Source: huggingface.co/docs/datasets, "Structure your repository"; datasets.Features as JSON.

>>> file_splits(["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"], [2, 1])
(('train', 'test'), array([0, 0, 1]))
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from streamkit.sources.fields import Column
from streamkit.sources.listing import Ints, Ragged
from streamkit.sources.rowfiles import ParquetRows
from streamkit.sources.splits import SPLIT_OF_FOLDER


def file_splits(names: Sequence[str], counts: Sequence[int]) -> tuple[tuple[str, ...], Ints | None]:
    """Splits as Hugging Face names their files: `train-00000-of-00002.parquet`, `test.csv`. One split alone is none."""
    found = []
    for name in names:
        word = re.match(r"[a-z]+", os.path.basename(name).lower())
        found.append(SPLIT_OF_FOLDER.get(word[0] if word else "", ""))
    if "" in found or len(set(found)) < 2:
        return (), None
    splits = tuple(dict.fromkeys(found))
    return splits, np.repeat([splits.index(split) for split in found], counts)


def described(path: str, table: pa.Table) -> tuple[pa.Table, tuple[str, ...] | None]:
    """The table with its class column named `label`, and the classes' names, if Hugging Face's datasets wrote the file."""
    metadata = ParquetRows(path).file.schema_arrow.metadata or {}
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        classes = {
            n: f["names"] for n, f in features.items() if f.get("_type") == "ClassLabel" and n in table.column_names
        }
        if len(classes) != 1:
            classes = {"label": classes["label"]}
        ((name, names),) = classes.items()
        class_names = tuple(map(str, names))
    except (KeyError, ValueError, TypeError, AttributeError):  # another program's metadata, or none
        return table, None
    if "label" not in table.column_names:
        table = table.rename_columns(["label" if n == name else n for n in table.column_names])
    return table, class_names


def named(column: Column, class_names: tuple[str, ...]) -> Column:
    values = column.values
    if (
        column.field.kind != "label"
        or isinstance(values, Ragged)
        or values.min() < 0
        or values.max() >= len(class_names)
    ):
        return column
    return column._replace(field=replace(column.field, class_names=class_names))

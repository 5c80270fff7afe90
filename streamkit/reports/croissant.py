"""MLCommons Croissant metadata of a dataset: its files, and every column of its index as a record set that tools can load.

The shards are described as files; Croissant has no words for payloads inside a TFRecord. License, creator and citation are
not known here: a publisher adds them.

Source: Croissant Format Specification 1.0 (docs.mlcommons.org/croissant).

    >>> import tempfile, streamkit
    >>> out = tempfile.mkdtemp() + "/shapes"
    >>> _ = streamkit.convert("sample_data/images", out, format="tfrecord", workers=1)
    >>> found = croissant(out)
    >>> found["name"], [record_set["name"] for record_set in found["recordSet"]]
    ('shapes', ['classes', 'train', 'val'])
"""

from __future__ import annotations

import hashlib
import json
import os
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from streamkit.atomic import write_atomic
from streamkit.errors import DamagedError
from streamkit.guard import mend
from streamkit.index import Index
from streamkit.manifest import Manifest
from streamkit.remote.address import local_only
from streamkit.rooted import inside
from streamkit.splits import Split

FILE_NAME = "croissant.json"
_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
_MIME = {"tfrecord": "application/x-tfrecord", "hdf5": "application/x-hdf5"}
_WHAT = {
    "key": "name of the sample in the source",
    "shard": "file that holds the sample",
    "width": "width of the image, upright [pixel]",
    "height": "height of the image, upright [pixel]",
    "channels": "channels of the image as stored",
    "orientation": "EXIF orientation as stored, 1 to 8",
}
_WHAT_PLACE = {
    "offset": "where the stored bytes of field {} begin in the shard [byte]",
    "length": "stored size of field {} [byte]",
    "crc32c": "crc32c of the stored bytes of field {}",
    "chunk": "row of the chunk table that holds field {}",
    "row": "row of field {} inside its chunk",
}


def croissant(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Croissant metadata (JSON-LD) of a dataset.

    Raises:
        UsageError: no such dataset.
        DamagedError: unfinished, altered, or an index is missing.
    """
    manifest = Manifest.load(path)
    root = local_only(path, "--croissant").resolve()
    splits = [s for s in manifest.splits.values() if s.shards]
    below = _below(root, manifest)
    files = [file for split in splits for file in _files(root, manifest, split, below)]
    what = f" as {manifest.format} shards, with an index of every sample"
    if below is None:
        what = ", of which this is the index alone; the adopted files themselves are not listed"
    record_sets = [_records(root, manifest, split) for split in splits]
    if manifest.class_names:
        record_sets.insert(0, _classes(manifest.class_names))
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": root.name,
        "description": f"{sum(s.samples for s in splits)} samples{what}.",
        "version": "1.0.0",
        "identifier": manifest.dataset_id,
        "distribution": files,
        "recordSet": record_sets,
    }


def write_croissant(path: str | os.PathLike[str]) -> Path:
    """Write OUT/croissant.json; returns its path."""
    target = Path(path) / FILE_NAME
    write_atomic(target, (json.dumps(croissant(path), indent=1) + "\n").encode())
    return target


def describes_files(path: str | os.PathLike[str]) -> bool:
    """Whether the files that hold the samples are part of the metadata: adopted ones elsewhere, or one a sample, are not."""
    return _below(Path(path), Manifest.load(path)) is not None


def _below(root: Path, manifest: Manifest) -> Path | None:
    """Where the shards lie, relative to the dataset's folder; None of shards elsewhere, and of loose files."""
    return None if manifest.format == "folder" else inside(root, manifest.root)


def _files(root: Path, manifest: Manifest, split: Split, below: Path | None) -> list[dict[str, Any]]:
    index = _index_file(root, split)
    return [index] if below is None else [index, _shard_files(manifest, split, below)]


def _index_file(root: Path, split: Split) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": split.index,
        "name": split.index,
        "description": f"Index of split {split.name}: one row a sample.",
        "contentUrl": split.index,
        "encodingFormat": "application/x-parquet",
        "sha256": _sha256(root / split.index),
    }


def _shard_files(manifest: Manifest, split: Split, below: Path) -> dict[str, Any]:
    names = [(below / shard.file).as_posix() for shard in split.shards]
    pattern = f"{split.name}-*{Path(names[0]).suffix}"
    return {
        "@type": "cr:FileSet",
        "@id": f"shards-{split.name}",
        "name": f"shards-{split.name}",
        "description": f"{len(split.shards)} shards of split {split.name}.",
        "encodingFormat": _MIME.get(manifest.format, "application/octet-stream"),
        "includes": pattern if all(fnmatch(name, pattern) for name in names) else names,
    }


def _sha256(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise DamagedError("the index is missing", path=path, hint=mend(path.parent)) from None


def _records(root: Path, manifest: Manifest, split: Split) -> dict[str, Any]:
    index = Index(root / split.index, split.samples, split.index_digest)  # it is what the manifest says
    fields = []
    label = manifest.schema.label
    for column in pq.read_schema(index.file):
        kind = _data_type(column.type)
        if kind is None:
            continue  # shapes of ragged arrays: Croissant 1.0 has no arrays of fixed size
        field = {
            "@type": "cr:Field",
            "@id": f"{split.name}/{column.name}",
            "name": column.name,
            "description": _describe(column.name),
            "dataType": kind,
            "source": {"fileObject": {"@id": split.index}, "extract": {"column": column.name}},
        }
        if label is not None and column.name == label.name and label.class_names:
            field["references"] = {"field": {"@id": "classes/value"}}
        fields.append(field)
    return {
        "@type": "cr:RecordSet",
        "@id": split.name,
        "name": split.name,
        "description": f"The {split.samples} samples of split {split.name}.",
        "key": {"@id": f"{split.name}/key"},
        "field": fields,
    }


def _describe(name: str) -> str:
    field, _, place = name.rpartition(".")
    return _WHAT_PLACE[place].format(field) if field and place in _WHAT_PLACE else _WHAT.get(name, f"column {name}")


def _data_type(kind: pa.DataType) -> str | None:
    if pa.types.is_boolean(kind):
        return "sc:Boolean"
    if pa.types.is_integer(kind):
        return "sc:Integer"
    if pa.types.is_floating(kind):
        return "sc:Float"
    return "sc:Text" if pa.types.is_string(kind) or pa.types.is_large_string(kind) else None


def _classes(names: list[str]) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": "classes",
        "name": "classes",
        "description": "Names of the classes.",
        "dataType": "sc:Enumeration",
        "key": {"@id": "classes/value"},
        "field": [
            {"@type": "cr:Field", "@id": "classes/value", "name": "value", "dataType": "sc:Integer"},
            {"@type": "cr:Field", "@id": "classes/name", "name": "name", "dataType": "sc:Text"},
        ],
        "data": [{"classes/value": i, "classes/name": name} for i, name in enumerate(names)],
    }

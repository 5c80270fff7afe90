"""The files that make a TFRecord folder a TFDS dataset: `tfds.builder_from_directory(out)` then reads it.

TFDS decodes pictures with TensorFlow, which neither applies EXIF orientation nor converts CMYK.

Source: tensorflow_datasets 4.9, core/proto/dataset_info.proto and feature.proto as JSON.

    >>> from streamkit.schema import Field
    >>> feature_json(Field("x", "array", "float32", (None, 2), "zlib"))["tensor"]["shape"]
    {'dimensions': ['-1', '2']}
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from streamkit.atomic import write_atomic
from streamkit.errors import one_line
from streamkit.manifest import Manifest
from streamkit.schema import Field
from streamkit.strict import canonical

_PACKAGE = "tensorflow_datasets.core.features"


def feature_json(field: Field) -> dict[str, Any]:
    """A field as features.json spells it."""
    if field.is_encoded_image:
        shape = (*field.shape[:2], field.shape[2] or 3)
        body = {"dtype": "uint8", "shape": _shape(shape)}
        return {"pythonClassName": f"{_PACKAGE}.image_feature.Image", "image": body}
    if field.kind == "label" and field.class_names is not None:
        body = {"numClasses": str(len(field.class_names))}
        return {"pythonClassName": f"{_PACKAGE}.class_label_feature.ClassLabel", "classLabel": body}
    if field.kind in ("text", "string"):
        return {"pythonClassName": f"{_PACKAGE}.text_feature.Text", "text": {}}
    if field.is_payload:
        encoding, dtype = {"raw": "bytes", "zlib": "zlib"}[field.encoding], field.dtype
    else:
        encoding, dtype = "none", "float32" if field.dtype.startswith("float") else "int64"
    body = {"dtype": dtype, "encoding": encoding, "shape": _shape(field.shape)}
    return {"pythonClassName": f"{_PACKAGE}.tensor_feature.Tensor", "tensor": body}


def features_json(fields: Iterable[Field], prefix: str = "") -> dict[str, Any]:
    """Fields as features.json spells a dictionary of them; "objects/xmin" is `xmin` of the dictionary `objects`."""
    parts: dict[str, list[Field]] = {}
    for field in fields:
        parts.setdefault(field.name[len(prefix) :].split("/")[0], []).append(field)
    features = {
        name: feature_json(own[0]) if own[0].name == prefix + name else features_json(own, f"{prefix}{name}/")
        for name, own in parts.items()
    }
    return {"pythonClassName": f"{_PACKAGE}.features_dict.FeaturesDict", "featuresDict": {"features": features}}


def _shape(shape: tuple[int | None, ...]) -> dict[str, Any]:
    return {"dimensions": [str(-1 if d is None else d) for d in shape]} if shape else {}


def write_tfds_files(out: Path, manifest: Manifest) -> None:
    """Write dataset_info.json, features.json and label.labels.txt into the dataset's folder."""
    info = {
        "name": "streamkit",
        "version": "1.0.0",
        "fileFormat": "tfrecord",
        "description": "Written by streamkit; manifest.json says more.",
        "splits": [
            {
                "name": split.name,
                "numBytes": str(split.nbytes),
                "shardLengths": [str(shard.samples) for shard in split.shards],
                "filepathTemplate": "{SPLIT}-{SHARD_INDEX}.{FILEFORMAT}",
            }
            for split in manifest.splits.values()
        ],
    }
    write_atomic(out / "features.json", canonical(features_json(manifest.schema)).encode())
    write_atomic(out / "dataset_info.json", canonical(info).encode())
    label = manifest.schema.label
    if label is not None and label.class_names is not None:
        write_atomic(out / f"{label.name}.labels.txt", "".join(f"{one_line(n)}\n" for n in label.class_names).encode())

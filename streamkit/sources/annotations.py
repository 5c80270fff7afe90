"""Boxes as annotation tools write them: COCO json and Pascal VOC XML -> one row a picture, lists of what it shows.

Both give the same names: `objects/class`, `objects/xmin`, `objects/ymin`, `objects/xmax`, `objects/ymax` [pixel], and what
else the format says of every object. A picture may show nothing.

Source: cocodataset.org/#format-data; the VOC2012 development kit, 3.

    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.xml"
    >>> _ = path.write_text("<annotation><filename>a.jpg</filename><object><name>cat</name><bndbox><xmin>1</xmin>"
    ...                     "<ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox></object></annotation>")
    >>> read_voc(path)[0]["objects/class"], read_voc(path)[0]["objects/xmax"]
    (['cat'], [3])
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from streamkit.errors import RefusedError, SourceError

SIDES = ("xmin", "ymin", "xmax", "ymax")
MAX_NBYTES = 2 << 30


def read_coco(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of a COCO json, one an entry of `images`, and remarks on what was left.

    Raises:
        SourceError: no COCO json, or an annotation of a picture or class that it does not have.
    """
    _check_size(path)
    try:
        data = json.loads(path.read_bytes())
        pictures = {image["id"]: image for image in data["images"]}
        classes = {category["id"]: str(category["name"]) for category in data.get("categories", [])}
        found: dict[Any, list[dict[str, Any]]] = {key: [] for key in pictures}
        for annotation in data.get("annotations", []):
            found[annotation["image_id"]].append(annotation)
        every = [a for some in found.values() for a in some]
        plain, boxed = _plain_names(every), bool(every) and all("bbox" in a for a in every)
        rows = []
        for key, image in pictures.items():
            row = {"file": str(image["file_name"])}
            row |= {side: image[side] for side in ("width", "height") if side in image}
            rows.append(row | _coco_objects(found[key], classes, plain, boxed))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise SourceError(
            f"this is no COCO json: {reason}", path=path, hint="It has images, annotations, categories."
        ) from None
    left = {name for a in every for name in a} - {*plain, *_COCO_OWN}
    notices = [f"{path.name}: {', '.join(sorted(left))} of the annotations were left"] if left else []
    return rows, notices


_COCO_OWN = ("id", "image_id", "category_id", "bbox")


def _plain_names(annotations: Iterable[dict[str, Any]]) -> list[str]:
    """Further facts that every annotation gives as a number: area, iscrowd, score."""
    names: set[str] | None = None
    for annotation in annotations:
        own = {name for name, value in annotation.items() if isinstance(value, (int, float)) and name not in _COCO_OWN}
        names = own if names is None else names & own
    return sorted(names or ())


def _coco_objects(
    annotations: list[dict[str, Any]], classes: dict[Any, str], plain: list[str], boxed: bool
) -> dict[str, Any]:
    out: dict[str, Any] = {f"objects/{name}": [a[name] for a in annotations] for name in plain}
    if classes:
        out["objects/class"] = [classes[a["category_id"]] for a in annotations]
    if boxed:
        boxes = [[float(v) for v in a["bbox"]] for a in annotations]
        ends = [(x, y, x + width, y + height) for x, y, width, height in boxes]
        out |= {f"objects/{side}": [end[i] for end in ends] for i, side in enumerate(SIDES)}
    return out


def read_voc(path: Path) -> list[dict[str, Any]]:
    """Rows of one Pascal VOC file, or of all .xml files below a folder, one a file.

    Raises:
        SourceError: a file that is no VOC annotation.
        RefusedError: a file that declares a document type, as entity bombs do.
    """
    paths = sorted(path.rglob("*.xml")) if path.is_dir() else [path]
    if not paths:
        raise SourceError("no .xml file in this folder of labels", path=path)
    return [_voc_row(one) for one in paths]


def _voc_row(path: Path) -> dict[str, Any]:
    _check_size(path)
    data = path.read_bytes()
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise RefusedError("this XML declares a document type, which no VOC file needs", path=path)
    try:
        root = ElementTree.fromstring(data)
        if root.tag != "annotation":
            raise ValueError(f"the root is <{root.tag}>, expected <annotation>")
        row: dict[str, Any] = {"file": (root.findtext("filename") or path.stem).strip()}
        for side in ("width", "height", "depth"):
            value = root.findtext(f"size/{side}")
            if value is not None:
                row[side] = int(value)
        objects = root.findall("object")
        row["objects/class"] = [(o.findtext("name") or "").strip() for o in objects]
        for name in ("difficult", "truncated"):
            row[f"objects/{name}"] = [int(o.findtext(name) or 0) for o in objects]
        for side in SIDES:
            row[f"objects/{side}"] = [_number(o.findtext(f"bndbox/{side}")) for o in objects]
    except (ElementTree.ParseError, ValueError) as error:
        raise SourceError(f"this is no VOC annotation: {error}", path=path) from None
    return row


def _number(text: str | None) -> int | float:
    if text is None:
        raise ValueError("an object without a whole <bndbox>")
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"a box that ends at {text}")
    return int(value) if value.is_integer() else value


def _check_size(path: Path) -> None:
    size = path.stat().st_size
    if size > MAX_NBYTES:
        raise RefusedError(f"a label file of {size} bytes, the limit is {MAX_NBYTES}", path=path)

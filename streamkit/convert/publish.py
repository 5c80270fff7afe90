"""The end of a conversion: merge the parts into the index, add what other tools need, write the manifest last.

>>> from streamkit.sources.listing import Listing
>>> import numpy as np
>>> from streamkit.schema import Schema
>>> source_facts(Listing(["a", "b"], np.array([1, 2]), Schema(())))["bytes"]
3
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import blake3
import numpy as np
import pyarrow as pa

from streamkit import index
from streamkit.atomic import replacing, sync_folder, write_atomic
from streamkit.convert import moments, skipped
from streamkit.convert.append import Before
from streamkit.convert.duplicates import COLUMN
from streamkit.convert.encode import final_schema
from streamkit.convert.journal import Journal, Part
from streamkit.convert.options import Options
from streamkit.convert.plan import Plan
from streamkit.digest import file_digest
from streamkit.manifest import FILE_NAME, Manifest
from streamkit.schema import Schema
from streamkit.sources.listing import BadItem, Listing
from streamkit.splits import SideFile, Split


def source_facts(listing: Listing) -> dict[str, Any]:
    """What the manifest says of the source: counts, and a digest of its sorted (key, size) pairs."""
    hasher = blake3.blake3()
    pairs = [f"{key}\0{size}\n" for key, size in zip(listing.keys, listing.sizes.tolist(), strict=True)]
    pairs += [f"{bad.key}\0bad\n" for bad in listing.bad]
    pairs.sort()
    hasher.update("".join(pairs).encode())
    hasher.update(listing.beside.encode())
    return {
        "items": len(listing) + len(listing.bad),
        "bytes": int(listing.sizes.sum()),
        "fingerprint": hasher.hexdigest(),
    }


def publish(
    out: Path,
    plan: Plan,
    schema: Schema,
    options: Options,
    source: Mapping[str, Any],
    journal: Journal,
    parts: Mapping[str, Part],
    bad: Sequence[BadItem],
    before: Before | None = None,
) -> Manifest:
    """Write index, interop files and, last, manifest.json; then remove the journal.

    `before`: the dataset that is appended to; `plan` and `parts` then name its shards too.
    """

    def tables(file: str) -> tuple[pa.Table, pa.Table | None]:
        return before.tables(file) if before is not None and file in there else journal.tables(file)

    there = {} if before is None else {s.file: s for split in before.manifest.splits.values() for s in split.shards}
    suffix = "parquet" if before is None else f"{before.generation}.parquet"
    schema = final_schema(schema, [part.facts for part in parts.values()])
    upright = all(part.facts.get("orientation", [1]) == [1] for part in parts.values())
    splits, counts = {}, {}
    for name in plan.splits:
        files = [shard.file for shard in plan.shards if shard.split == name and parts[shard.file].shard.samples]
        labels: Counter[int] = Counter()
        has_chunks = any(f.chunk_rows is not None for f in schema)
        chunks = f"chunks-{name}.{suffix}" if has_chunks else None
        index_file = f"index-{name}.{suffix}"
        with replacing(out / index_file) as path:
            index.write(path, index_tables(tables, files, schema, upright, labels))
            index_digest = file_digest(path)
        if chunks is not None:
            with replacing(out / chunks) as path:
                index.write(path, (t for f in files if (t := tables(f)[1]) is not None))
        shards = tuple(parts[file].shard for file in files)
        splits[name] = Split(
            name,
            samples=sum(s.samples for s in shards),
            nbytes=sum(s.nbytes for s in shards),
            index=index_file,
            index_digest=index_digest,
            shards=shards,
            chunks=chunks,
            chunks_digest=None if chunks is None else file_digest(out / chunks),
        )
        counts[name] = labels
    manifest = Manifest(
        format=options.format,
        schema=schema,
        splits=splits,
        options=options.to_json(),
        source=source,
        statistics=statistics(schema, counts, parts, before),
        skipped=len(bad),
    )
    manifest = replace(manifest, files=write_side_files(out, manifest, bad))
    for shard in plan.shards:
        if not parts[shard.file].shard.samples:
            (out / shard.file).unlink(missing_ok=True)  # every item of it was skipped
    journal.remove_strays({shard.file for shard in plan.shards})
    write_atomic(out / FILE_NAME, manifest.dump().encode())
    if before is not None and before.manifest.skipped and not bad:
        (out / skipped.FILE_NAME).unlink(missing_ok=True)  # not before: an append that is killed reads it again
    sync_folder(out)
    return manifest


Tables = Callable[[str], tuple[pa.Table, pa.Table | None]]


def index_tables(
    tables: Tables, files: Sequence[str], schema: Schema, upright: bool, labels: Counter[int]
) -> Iterator[pa.Table]:
    chunked = [f.name for f in schema if f.chunk_rows is not None]
    n_chunks = 0
    for file in files:
        table, chunks = tables(file)
        table = table.replace_schema_metadata(None)
        if COLUMN in table.column_names:
            table = table.drop_columns([COLUMN])
        if upright and "orientation" in table.column_names:
            table = table.drop_columns(["orientation"])
        for name in chunked:  # chunk numbers count from the split's first shard
            at = table.column_names.index(f"{name}.chunk")
            shifted = index.column(index.numpy_of(table, f"{name}.chunk") + n_chunks)
            table = table.set_column(at, f"{name}.chunk", shifted)
        n_chunks += 0 if chunks is None else chunks.num_rows
        if schema.label is not None:
            values, numbers = np.unique(index.numpy_of(table, schema.label.name), return_counts=True)
            labels.update(dict(zip(values.tolist(), numbers.tolist(), strict=True)))
        yield table


def statistics(
    schema: Schema, counts: Mapping[str, Counter[int]], parts: Mapping[str, Part], before: Before | None = None
) -> dict[str, Any]:
    """Class counts a split; range of picture sizes, mean and spread of their channels; values that are no numbers."""
    out: dict[str, Any] = {}
    label = schema.label
    if label is not None:
        names = label.class_names
        out["class_counts"] = {
            split: {names[i] if names is not None else str(i): n for i, n in sorted(numbers.items())}
            for split, numbers in counts.items()
        }
    facts = [part.facts for part in parts.values() if "width" in part.facts]
    if facts:
        out["image"] = {
            side: [min(f[side][0] for f in facts), max(f[side][-1] for f in facts)] for side in ("width", "height")
        }
        out["image"]["pixels"] = sum(f["pixels"] for f in facts)
    there = [] if before is None else [before.sums()]
    found = moments.totals([*there, *(part.facts["sums"] for _, part in sorted(parts.items()) if "sums" in part.facts)])
    arrays = {name: {"not_finite": values} for name, values in found.pop("not_finite").items()}
    if facts and found:
        one = "image" in schema and schema["image"].shape[-1] == 1
        out["image"] |= {name: v[:1] if one and isinstance(v, list) else v for name, v in found.items()}
    return out | ({"arrays": arrays} if arrays else {})


def write_side_files(
    out: Path, manifest: Manifest, bad: Sequence[BadItem], shards: Path | None = None
) -> dict[str, SideFile]:
    """Write what other tools read, and the list of skipped items; returns their sizes and digests.

    `shards`: the folder that the shards lie in; `out` if None.
    """
    if manifest.format == "tfrecord":
        from streamkit.shards.tfds import write_tfds_files

        write_tfds_files(out, manifest)
    else:
        from streamkit.shards.joined import join_shards

        for split in manifest.splits.values():
            with replacing(out / f"{split.name}.h5") as path:
                join_shards(path, manifest.schema, [(s.file, s.samples) for s in split.shards], shards or out)
    if bad:
        skipped.write(out, bad)
    names = [name for name in side_file_names(manifest, bool(bad)) if (out / name).exists()]
    return {name: SideFile((out / name).stat().st_size, file_digest(out / name)) for name in names}


def side_file_names(manifest: Manifest, has_skipped: bool) -> list[str]:
    """Names of the files beside shards and index."""
    if manifest.format == "tfrecord":
        label = manifest.schema.label
        names = ["dataset_info.json", "features.json"] + ([f"{label.name}.labels.txt"] if label is not None else [])
    else:
        names = [f"{name}.h5" for name in manifest.splits]
    return sorted(names + ([skipped.FILE_NAME] if has_skipped else []))

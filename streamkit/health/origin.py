"""What a dataset was made of, given again: its options, its source and what lay beside that.

>>> options_of.__name__
'options_of'
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from streamkit.convert.items import Items, find_items
from streamkit.convert.options import Options
from streamkit.convert.publish import source_facts
from streamkit.errors import SourceError, UsageError
from streamkit.manifest import Manifest


def options_of(manifest: Manifest) -> Options:
    """The options that the dataset was made with."""
    known = {field.name for field in fields(Options)}
    strange = sorted(set(manifest.options) - known)
    if strange or "format" not in manifest.options:
        raise UsageError(
            f"the manifest's options are not those of a conversion ({', '.join(strange) or 'there is no format'})",
            path=manifest.path,
            hint="Pass --drop, or make the dataset again.",
        )
    options: dict[str, Any] = dict(manifest.options)
    return Options(**options)


def items_again(
    path: Path, labels: Path | None, masks: Path | None, options: Options, manifest: Manifest, same: bool
) -> Items:
    """The source and its items; with `same`, SourceError when they are not those that the dataset was made of."""
    for name, given, wanted in (("labels", labels, options.labels), ("masks", masks, options.masks)):
        if wanted and given is None:
            raise UsageError(f"the dataset was made with --{name}", path=manifest.path, hint=f"Pass --{name} again.")
    items = find_items(path, labels, masks, options)
    found = source_facts(items.listing)
    if same and found != manifest.source:
        said = manifest.source
        raise SourceError(
            f"this is not what the dataset was made of: {found['items']} items of {found['bytes']} bytes here, "
            f"{said.get('items')} of {said.get('bytes')} then, or other names or sizes",
            path=path,
            hint="Bring back the items that changed, use --drop, or convert again.",
        )
    return items

"""Where the shards of a dataset lie: beside its manifest, or, of adopted files, below a root that the user named.

A manifest is data from anywhere, so a path in it that leads out of its own folder is not followed because it stands
there. It is followed when the user named it: now, with `root=`, or when this user ran `streamkit index`, which leaves a
note of the dataset's id (a cryptographic digest of all that the manifest says) among the user's own files, where no
dataset can write. So an index works at once for who made it, wherever it is moved together with its files, and anyone
else names the root once. Adopted files inside the dataset's own folder need neither.

Source: XDG Base Directory Specification 0.8 (XDG_STATE_HOME).

    >>> shards_root("out", None, None, "id").as_posix()
    'out'
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from streamkit.atomic import os_error
from streamkit.errors import DamagedError, RefusedError, UsageError
from streamkit.index import ADOPT_AGAIN
from streamkit.remote.address import Address, place


def shards_root(
    folder: str | os.PathLike[str] | Address,
    recorded: str | None,
    named: str | os.PathLike[str] | Address | None,
    dataset_id: str,
) -> Path | Address:
    """The folder below which a dataset's shards lie.

    Args:
        folder: the dataset's own, or its address.
        recorded: root of adopted files relative to it, as the manifest says; None where shards lie beside the manifest.
        named: the root as the user says it, a folder or an address; or None.
        dataset_id: the manifest's.

    Raises:
        RefusedError: the recorded root lies outside the dataset's folder, and this user never named it.
        UsageError: the root named is no folder, or the dataset has no adopted files.
        DamagedError: there is no such folder as is recorded.
    """
    own = place(folder)
    if named is not None:
        if recorded is None:
            raise UsageError("root= is for adopted files, and this dataset holds its own shards", path=own)
        chosen = place(named)
        if isinstance(chosen, Path) and not chosen.is_dir():
            raise UsageError("the root is no folder", path=named, hint="Give the folder that the adopted files lie in.")
        return chosen
    if recorded is None:
        return own
    if isinstance(own, Address):
        raise RefusedError(
            "its files lie elsewhere, and an address in a manifest is not followed by itself",
            path=own,
            hint="If you trust it, name the folder that they lie in, here or on a server: root= (--root).",
        )
    found = Path(os.path.realpath(own / recorded))
    if inside(own, recorded) is None and not _note(dataset_id).exists():
        raise RefusedError(
            f"its files lie outside of it, in {found}, and this user did not index them",
            path=own,
            hint="If you trust it, name that folder: root= (--root).",
        )
    try:
        os.stat(found)
    except (FileNotFoundError, NotADirectoryError):
        raise DamagedError("the folder that its files lie in is missing", path=found, hint=ADOPT_AGAIN) from None
    except OSError as error:
        raise os_error(error, found) from error
    return found


def inside(own: Path, recorded: str | None) -> Path | None:
    """Where a dataset's shards lie, relative to its own folder; None where that is outside of it."""
    top = Path(os.path.realpath(own))
    found = Path(os.path.realpath(top / (recorded or ".")))
    return found.relative_to(top) if found == top or top in found.parents else None


def remember(dataset_id: str) -> bool:
    """Note that this user indexed a dataset; False where the note cannot be kept, so that `root=` will be needed."""
    note = _note(dataset_id)
    try:
        note.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        note.touch(mode=0o600)
    except OSError:
        return False
    return True


def _note(dataset_id: str) -> Path:
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    if not re.fullmatch(r"[0-9a-f]{64}", dataset_id):
        raise RefusedError(f"{dataset_id[:80]!r} is no dataset id")
    return Path(state, "streamkit", "adopted", dataset_id)

"""How a new dataset takes an old one's place: in one step where the file system can exchange two folders.

The old one is then OUT's neighbour `.OUT.old`, and is cleared: its own files are deleted, by name and the manifest last;
everything else is somebody's and moves to OUT. Killed anywhere, the next run goes on from there (`finish_swap`). Where folders
cannot be exchanged, as on NFS, OUT is missing between two renames; the new dataset is then `.OUT.swap`.

>>> import tempfile
>>> new, final = (Path(tempfile.mkdtemp()) for _ in range(2))
>>> _ = (new / FILE_NAME).write_text("new"), (final / FILE_NAME).write_text("old"), (final / "notes.txt").write_text("mine")
>>> swap(new, final)
>>> (final / FILE_NAME).read_text(), (final / "notes.txt").read_text(), new.exists()
('new', 'mine', False)
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
from pathlib import Path

from streamkit.atomic import sync_folder
from streamkit.convert import skipped
from streamkit.convert.lock import Lock
from streamkit.errors import StreamkitError, UsageError
from streamkit.manifest import FILE_NAME, WORK_FOLDER, Manifest

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # Source: renameat2(2)
_CANNOT = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
# What conversions write, where no manifest tells.
_WRITTEN = re.compile(
    r"[A-Za-z]\w*-\d{5,}\.(tfrecord|h5)|(index|chunks)-[A-Za-z]\w*(\.\d+)?\.parquet|\..*\.tmp-[0-9a-f]{12}"
    r"|dataset_info\.json|features\.json|.*\.labels\.txt|skipped\.jsonl"
)


def swap(new: Path, final: Path) -> None:
    """Put `new` in the place of `final`; the old dataset is deleted last.

    Whoever calls holds the lock of both; that of `new` moves with it and keeps others out to the end.

    Raises:
        UsageError: a file that is not the old dataset's own has the name of one of the new one's.
    """
    ready, old = _beside(final, "swap"), _beside(final, "old")
    if final.exists():
        os.rename(new, old)
        if not _exchanged(old, final):
            os.rename(old, ready)
            os.rename(final, old)
            os.rename(ready, final)
    else:
        os.rename(new, final)
    sync_folder(final.parent)
    if old.exists():
        _clear(old, final)


def finish_swap(final: Path) -> None:
    """Complete a swap that was killed: put the new dataset in place if nothing is there, and clear what else is left.

    Raises:
        BusyError: it was not killed.
    """
    ready, old = _beside(final, "swap"), _beside(final, "old")
    if not final.exists() and (ready / FILE_NAME).exists():
        with Lock(ready) as lock:
            swap(ready, final)
            lock.remove(final)
    for folder in (ready, old):
        if folder.is_dir() and (final / FILE_NAME).exists() and _is_ours(folder):
            with Lock(final) as lock, Lock(folder):
                _clear(folder, final)
                lock.remove()


def _beside(final: Path, what: str) -> Path:
    return final.with_name(f".{final.name}.{what}")


def _exchanged(a: Path, b: Path) -> bool:
    """Give each of two folders the other's name, in one step; False where the file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # a C library without it
        return False
    if renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _CANNOT:
        return False
    raise OSError(code, os.strerror(code), os.fspath(b))


def _is_ours(old: Path) -> bool:
    """True for what is or was a dataset: somebody else may like such a name, too."""
    return (old / FILE_NAME).exists() or (old / WORK_FOLDER).exists() or not any(old.iterdir())


def _clear(old: Path, final: Path) -> None:
    """Delete a dataset that was replaced; what is not its own moves to `final`."""
    own = _own(old, final)
    for path in sorted(old.iterdir()):
        if path.name in own:
            continue
        if os.path.lexists(final / path.name):
            raise UsageError(
                f"{path.name} is not the old dataset's own, and the new one has a file of that name",
                path=old,
                hint="Move it elsewhere, then run it again.",
            )
        os.rename(path, final / path.name)
    sync_folder(final)
    for name in sorted(own, key=lambda name: (name == FILE_NAME, name == WORK_FOLDER)):
        path = old / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    old.rmdir()


def _own(old: Path, final: Path) -> set[str]:
    """What the dataset in `old` consists of: as its manifest says, or else as such files are named."""
    own = {FILE_NAME, WORK_FOLDER}
    written = re.compile("(?!)")  # nothing
    try:
        manifest = Manifest.load(old)
    except StreamkitError:  # what is replaced may well be damaged, or never have been finished
        own |= set(os.listdir(final))
        written = _WRITTEN
    else:
        own |= {*manifest.files, *([skipped.FILE_NAME] if manifest.skipped else ())}
        # The indexes of before an --append too, which its manifest no longer names.
        written = re.compile(rf"(index|chunks)-({'|'.join(map(re.escape, manifest.splits))})(\.\d+)?\.parquet")
        for split in manifest.splits.values():
            shards = split.shards if manifest.root is None else ()  # adopted ones are the user's
            own |= {split.index, str(split.chunks), *(shard.file for shard in shards)}
    return {
        path.name
        for path in old.iterdir()
        if (path.name in own or written.fullmatch(path.name))
        and (path.name == WORK_FOLDER or path.is_symlink() or not path.is_dir() or not any(path.iterdir()))
    }

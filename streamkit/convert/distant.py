"""Conversions from a server and to one: the source is copied here first, the dataset is made here and sent when it is whole.

What a reader sees there is whole at every moment: shards first, the index and what other tools read, manifest.json last.
The journal stays here, so the same command continues an interrupted conversion or an interrupted upload.

`append` looks at the manifest and the index alone, and sends the new shards. `overwrite` takes the old manifest away
before the first new file comes, as no store can put several files in the place of others at once: until the new one is
there the place counts as unfinished, and who reads the old dataset is told that it was replaced.

>>> _overlap(Address("s3://bucket/a"), Address("s3://bucket/a/b")), _overlap(Address("s3://b/a"), Address("s3://b/ab"))
(True, False)
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from streamkit.atomic import write_atomic
from streamkit.convert.report import Report
from streamkit.convert.staging import bring, held
from streamkit.errors import BusyError, DamagedError, StreamkitError, UsageError
from streamkit.manifest import FILE_NAME, Manifest
from streamkit.remote.address import Address, is_remote, place
from streamkit.remote.failures import Missing
from streamkit.remote.sending import remove, upload, writable
from streamkit.remote.transfer import download, listing
from streamkit.splits import Shard

_AT_ONCE = 4  # uploads under way; each of a large file goes in parts by itself


@dataclass
class State:
    """What is known of an upload; kept beside what is uploaded.

    Attributes:
        base: dataset_id of the dataset at the address when work began; None where there was none.
        sent: digests of the shards that are there.
        replaced: names of the files of a dataset that is being replaced.
    """

    base: str | None = None
    sent: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, folder: Path) -> State:
        file = folder / _STATE
        return cls(**json.loads(file.read_text())) if file.exists() else cls()

    def save(self, folder: Path) -> None:
        write_atomic(folder / _STATE, json.dumps(asdict(self)).encode())


_STATE = "state.json"


def names_of(manifest: Manifest) -> set[str]:
    """Names of a dataset's files but the manifest itself."""
    tables = {name for split in manifest.splits.values() for name in (split.index, split.chunks) if name is not None}
    return {shard.file for shard in _shards(manifest)} | tables | set(manifest.files)


def _shards(manifest: Manifest) -> Iterator[Shard]:
    return (shard for split in manifest.splits.values() for shard in split.shards)


def convert_at_a_distance(
    convert: Callable[..., Report], inputs: dict[str, Any], out: Any, options: dict[str, Any]
) -> Report:
    """`convert`, which knows this machine only, of inputs or to an output of which some are addresses.

    Args:
        convert: the conversion.
        inputs: the path or address of its source, labels and masks, by the names of its arguments; or None.
        out: path or address of the output.
        options: the other arguments.
    """
    far = {name: place(path) for name, path in inputs.items() if is_remote(path)}
    target = place(out)
    if isinstance(target, Address) and any(_overlap(target, path) for path in far.values()):
        raise UsageError("source and output lie inside one another", path=target, hint="Choose an output elsewhere.")
    if options.get("cluster") is not None or options.get("executor") is not None:
        raise UsageError(
            "other machines do not see what is copied to this one",
            path=next((a for a in (*far.values(), target) if isinstance(a, Address)), None),
            hint="Convert without a cluster, or on a file system that all of them mount.",
        )
    with ExitStack() as stack:
        names: dict[str, Address] = {}  # of the places here, for messages
        for name, address in far.items():
            assert isinstance(address, Address)
            folder = stack.enter_context(held("sources", address))
            stack.callback(shutil.rmtree, folder / name, ignore_errors=True)
            shutil.rmtree(folder / name, ignore_errors=True)  # of a conversion that was killed: it may have changed
            inputs[name] = bring(address, folder / name)
            names[str(inputs[name])] = address
        options |= {name: path for name, path in inputs.items() if name != "source" and path is not None}
        if isinstance(target, Path):
            with _named(names):
                return convert(inputs["source"], target, **options)
        folder = stack.enter_context(held("outputs", target))
        return _to_server(convert, inputs["source"], target, folder, options, names)


def _overlap(a: Address, b: Path | Address) -> bool:
    texts = sorted([a.url.rstrip("/") + "/", str(getattr(b, "url", b)).rstrip("/") + "/"])
    return texts[1].startswith(texts[0])


def _to_server(
    convert: Callable[..., Report], source: Any, address: Address, folder: Path, options: Any, names: dict[str, Address]
) -> Report:
    staged = folder / address.name
    names[str(staged)] = address
    if options.get("on_bad") == "quarantine":
        raise UsageError("quarantine needs an output on this machine", path=address, hint="Use --on-bad skip.")
    writable(address)
    there = _manifest_of(address)
    if options.get("append") and there is None:
        raise UsageError("there is no dataset to append to", path=address)
    if staged.exists() and there is not None and _is_stale(staged, folder, there):
        shutil.rmtree(staged)
    begun = staged.exists()
    if not begun:
        State(None if there is None else there.dataset_id).save(folder)
        if there is not None and not options.get("overwrite"):
            _mirror(address, there, staged, whole=bool(options.get("append")) and there.format == "hdf5")
        elif there is None and _something_at(address):
            raise UsageError("the output is not empty", path=address, hint="Choose a folder that is new or empty.")
    with _named(names):
        report = convert(source, staged, **options)
    sends = report.manifest is not None and report.manifest != there
    if report.manifest is not None and sends:
        _send(staged, address, report.manifest, there, bool(options.get("append")))
    if report.manifest is not None or not begun:  # else a dry run of what was begun before
        shutil.rmtree(staged, ignore_errors=True)
        (folder / _STATE).unlink(missing_ok=True)
    return replace(report, out=str(address), already_done=report.already_done and not sends)


def _is_stale(staged: Path, folder: Path, there: Manifest) -> bool:
    """True where what was begun here builds on another dataset than lies there now."""
    made = Manifest.load(staged).dataset_id if (staged / FILE_NAME).exists() else None
    return there.dataset_id not in (State.load(folder).base, made)


def _manifest_of(address: Address) -> Manifest | None:
    try:
        return Manifest.load(address)
    except UsageError:
        return None


def _something_at(address: Address) -> bool:
    try:
        return bool(listing(address))
    except Missing:
        return False


def _mirror(address: Address, there: Manifest, staged: Path, whole: bool) -> None:
    """The dataset as it lies on the server, as far as a conversion looks at it: shards are holes of the right size, unless
    `whole` (the joined file of an HDF5 dataset is made of what is in them)."""
    sizes = listing(address)
    for shard in _shards(there):
        if sizes.get(shard.file) != shard.nbytes:
            what = f"has {sizes[shard.file]} bytes, not {shard.nbytes}" if shard.file in sizes else "is missing"
            raise DamagedError(f"{shard.file} {what}", path=address, hint="Pass --overwrite to convert again.")
    coming = staged.with_name(f"{staged.name}.coming")
    shutil.rmtree(coming, ignore_errors=True)
    coming.mkdir()
    holes = {} if whole else {shard.file: shard.nbytes for shard in _shards(there)}
    for name in [*sorted(names_of(there)), FILE_NAME]:
        with open(coming / name, "wb") as file:
            if name in holes:
                file.truncate(holes[name])
            else:
                download(address / name, file.fileno())
    State(there.dataset_id, [shard.digest for shard in _shards(there)]).save(staged.parent)
    os.rename(coming, staged)


def _send(staged: Path, address: Address, manifest: Manifest, there: Manifest | None, append: bool) -> None:
    """Shards, then the rest, then the manifest; shards that were sent before are not sent again."""
    folder, state, lock = staged.parent, State.load(staged.parent), threading.Lock()
    if there is not None and not append:
        state = State(state.base, [], sorted(names_of(there)))  # equal names may hold other bytes there
        state.save(folder)
        remove(address / FILE_NAME)

    def send(shard: Shard) -> None:
        upload(staged / shard.file, address / shard.file)
        with lock:
            state.sent.append(shard.digest)
            state.save(folder)

    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="streamkit") as pool:
        for _ in pool.map(send, [shard for shard in _shards(manifest) if shard.digest not in state.sent]):
            pass
    shards = {shard.file for shard in _shards(manifest)}
    for path in sorted(staged.iterdir()):
        if path.is_file() and path.name not in shards and path.name != FILE_NAME:
            upload(path, address / path.name)
    if append:
        now = _manifest_of(address)
        if now is None or now.dataset_id != state.base:
            raise BusyError("another converter has just changed this dataset", path=address, hint="Run it again.")
    if not upload(staged / FILE_NAME, address / FILE_NAME, only_new=not append):
        found = _manifest_of(address)
        if found is None or found.dataset_id != manifest.dataset_id:
            raise BusyError("another converter was first here", path=address, hint="Choose another output.")
    for name in sorted(set(state.replaced) - names_of(manifest)):
        remove(address / name)


@contextmanager
def _named(names: dict[str, Address]) -> Iterator[None]:
    """Errors about places here name the addresses that they stand for."""
    try:
        yield
    except StreamkitError as error:
        path = error.path or ""
        for here in sorted(names, key=len, reverse=True):
            if path == here or path.startswith(here + os.sep):
                rest = path[len(here) :].strip(os.sep)
                error.path = str(names[here] / rest if rest else names[here])
                renamed = type(error)(
                    error.what,
                    path=error.path,
                    shard=error.shard,
                    record=error.record,
                    offset=error.offset,
                    key=error.key,
                    hint=error.hint,
                )
                renamed.__dict__ |= {k: v for k, v in error.__dict__.items() if k == "bad"}
                raise renamed from error
        raise

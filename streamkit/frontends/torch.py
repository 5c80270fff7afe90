"""PyTorch: the loader as a DataLoader that is right with worker processes. PyTorch is imported here.

Worker w of W makes batches w, w + W, ...; the DataLoader takes them in turn, so the order is that of one process.

    >>> share(10, worker=1, n_workers=4)
    range(1, 10, 4)
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.utils.data

from streamkit.errors import ResourceError, StreamkitError, UsageError
from streamkit.frontends.devices import ahead, mover

if TYPE_CHECKING:
    from streamkit.stream import Stream


def share(n: int, worker: int, n_workers: int, start: int = 0) -> range:
    """Numbers of the batches that one worker makes."""
    return range(start + worker, n, n_workers)


class Batches(torch.utils.data.IterableDataset[Any]):
    """Batches of a loader as tensors. The epoch's number lies in shared memory, where persistent workers see it."""

    def __init__(self, loader: Stream) -> None:
        self.loader = loader
        self.taken = torch.zeros(2, dtype=torch.int64).share_memory_()  # epoch, first batch

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        epoch, start = self.taken.tolist()
        info = torch.utils.data.get_worker_info()
        worker, n_workers = (0, 1) if info is None else (info.id, info.num_workers)
        loader = self.loader.within(self.loader.memory_budget // n_workers)
        for batch in loader.stream(epoch, share(len(self.loader), worker, n_workers, start)):
            yield _tensors(batch)


class _DataLoader(torch.utils.data.DataLoader[Any]):
    """A DataLoader that takes an epoch from the loader, in the main process, each time an iteration begins.

    It begins with the first batch: Keras on PyTorch makes an iterator after every epoch that it never uses.
    """

    def __iter__(self) -> Any:
        epoch, start = self.dataset.loader.begin_epoch()
        self.dataset.taken[:] = torch.tensor([epoch, start])
        device, n = self.dataset.loader.device, 0
        _check_shared_memory(self.dataset.loader, self.num_workers)
        try:
            for batch in super().__iter__() if device is None else ahead(mover("torch", device), super().__iter__()):
                n += 1
                yield batch
        except StreamkitError:
            self.dataset.loader.check_bad()  # PyTorch made an error of the worker's text, traceback and all
            raise
        loader = self.dataset.loader
        exact = not (loader.skips_bad and loader.batch_size is None)  # single samples that are bad are left out
        if exact and n < len(loader) - start:  # PyTorch itself says nothing
            raise ResourceError(
                f"workers handed over {n} of {len(loader) - start} batches: /dev/shm was full", hint=_SHM
            )


_SHM = "Make /dev/shm larger (docker run --shm-size), or pass num_workers=0: the loader has threads of its own."


def _check_shared_memory(loader: Stream, n_workers: int) -> None:
    """Workers hand batches over in shared memory, and a batch that finds no room there is lost without an error."""
    try:
        there = os.statvfs("/dev/shm")
    except OSError:
        return
    free, needed = there.f_bavail * there.f_frsize, n_workers * loader.sample_nbytes * (loader.batch_size or 1)
    if free < needed:
        raise ResourceError(f"{n_workers} workers need {needed} bytes of /dev/shm, which has {free}", hint=_SHM)


def _tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _tensors(v) for name, v in value.items()}
    if isinstance(value, tuple):
        return tuple(_tensors(v) for v in value)
    if isinstance(value, np.ndarray) and value.dtype != object:
        return torch.from_numpy(value)
    if isinstance(value, np.generic):
        return torch.from_numpy(np.asarray(value))
    return value


def as_torch(loader: Stream, **options: Any) -> torch.utils.data.DataLoader[Any]:
    """See `Loader.as_torch`."""
    for name in sorted({"batch_size", "shuffle", "sampler", "batch_sampler", "drop_last"} & options.keys()):
        raise UsageError(f"{name}= is no option of as_torch()", hint="What a batch holds, the Loader decides: tell it.")
    return _DataLoader(Batches(loader), batch_size=None, **options)

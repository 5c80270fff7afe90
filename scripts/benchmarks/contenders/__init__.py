"""One file a contender, with the same four functions; its third-party imports wait until `load` in its own environment.

REQUIREMENTS      what pip installs into .venv-peers/NAME, pinned; none: the environment of streamkit itself
ways(task)        in which ways it does a task, best honest settings named
load()            its imports, so that they do not count in reading tasks
write(task, way, source, out)    its files from the source; two workers where it can
open(task, way, source, out)     a function that gives the batches (x, y) of one epoch
"""

from __future__ import annotations

NAMES = ("limits", "streamkit", "tfdata", "tfds", "keras_folder", "h5py", "grain", "mosaicml", "ffcv")

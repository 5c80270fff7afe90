"""Adoption: TFRecord files, HDF5 files and image folders that exist become a dataset without a byte of them rewritten.

named.py      what the user named: which files, of which kind, below which root, in which splits
part.py       what is found of one file: where its payloads lie, its columns, its facts
examples.py   TFRecord of any tf.train.Example: schema by scanning, ranges inside the records
datasets.py   HDF5: contiguous, chunked, and chunks that split the samples
pictures.py   an image folder, every file a range
run.py        all of it, start to end: `adopt`, which users call as `streamkit.index`

>>> import tempfile
>>> adopt("sample_data/images/val", tempfile.mkdtemp() + "/out").manifest.splits["train"].samples
240
"""

from streamkit.adopt.run import Adoption, adopt

__all__ = ["Adoption", "adopt"]

"""Is a dataset whole, and if not: what is damaged, and how it becomes whole again. `streamkit.verify` and `streamkit.repair`.

scan.py       one pass over a file: its digest and the crc32c of every range in it
entries.py    the ranges that the index gives each shard, and whether they can be right at all
check.py      every size, count, digest and index entry -> Report
loose.py      the files of an adopted folder of pictures
bring.py      what is checked of a dataset on a server, copied here for that long
mending.py    the command that mends what was found
decode.py     what --full adds: every payload decoded
structure.py  and whether HDF5 files hold all that they show
rewrite.py    damaged shards and files written again from the source
origin.py     the source of a dataset, given again
grown.py      the same for a dataset that was grown by --append
drop.py       a valid dataset without the damaged records

>>> Problem("train-00003.tfrecord", "crc32c is 1, the index says 2", record=7, key="cats/1.jpg").record
7
"""

from streamkit.health.check import verify
from streamkit.health.report import Problem, Report
from streamkit.health.rewrite import Repair, repair

__all__ = ["Problem", "Repair", "Report", "repair", "verify"]

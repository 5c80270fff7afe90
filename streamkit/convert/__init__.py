"""Conversion: plan (pure), then write shards whole, then publish the manifest last.

>>> convert.__name__
'convert'
"""

from streamkit.convert.run import Report, convert

__all__ = ["Report", "convert"]

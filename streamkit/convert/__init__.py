"""Conversion: plan (pure), then write shards whole, then publish the manifest last.

`streamkit.convert` is this package and the function at once: importing a module of a package sets the package as an
attribute of its parent, which would hide a function of the same name.

    >>> import streamkit
    >>> callable(streamkit.convert), streamkit.convert.convert is convert
    (True, True)
"""

import sys
import types

from streamkit.convert.report import Report
from streamkit.convert.run import convert

__all__ = ["Report", "convert"]


class _Callable(types.ModuleType):
    __call__ = staticmethod(convert)


sys.modules[__name__].__class__ = _Callable

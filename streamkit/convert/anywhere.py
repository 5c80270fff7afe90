"""Where a conversion has to do with a server, distant.py is asked, and only then are the clients of servers loaded.

>>> anywhere(lambda source, out: (source, out))("raw", "out")
('raw', 'out')
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from streamkit.remote.address import is_remote


def anywhere(convert: Callable[..., Any]) -> Callable[..., Any]:
    """`convert`, which knows this machine only, for addresses of servers as well."""

    @functools.wraps(convert)
    def with_addresses(source: Any, out: Any, **options: Any) -> Any:
        inputs = {"source": source} | {name: options.get(name) for name in ("labels", "masks")}
        if not any(is_remote(path) for path in (*inputs.values(), out)):
            return convert(source, out, **options)
        from streamkit.convert.distant import convert_at_a_distance

        return convert_at_a_distance(convert, inputs, out, options)

    return with_addresses

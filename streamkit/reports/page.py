"""A page in one file: style, scripts and data inside, nothing fetched. Text from data can do nothing but be shown.

Data travels as JSON in which "<" and its like are escaped, and scripts put it on the page as text only. A content security
policy allows this page's own script by its hash, pictures from data: addresses, and nothing else.

Source: HTML standard, 4.12.1.3 (restrictions for contents of script elements); Content Security Policy Level 3.

    >>> "</script>" in escaped({"class": "</script><script>alert(1)"})
    False
    >>> page("Title & co", {}, ["charts.js"]).startswith("<!doctype html>")
    True
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import tempfile
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from streamkit.atomic import os_error, write_atomic
from streamkit.errors import ResourceError, one_line

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; \
style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<noscript>This page draws itself with JavaScript, which is switched off here.</noscript>
<main id="main"></main>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""


def escaped(data: Any) -> str:
    """JSON that may stand inside a script element, whatever texts it holds."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def page(title: str, data: Any, scripts: Sequence[str]) -> str:
    """The text of a page, which UTF-8 can hold.

    Args:
        title: plain text.
        data: JSON-able; the scripts find it as `DATA`.
        scripts: names of script files of this room, in order.
    """
    room = files("streamkit.reports")
    script = "\n" + "\n".join(room.joinpath(name).read_text("utf-8") for name in scripts)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    style = room.joinpath("page.css").read_text("utf-8")
    return _PAGE.format(
        title=html.escape(one_line(title)), digest=digest, style=style, data=escaped(data), script=script
    )


def page_file(path: str | os.PathLike[str]) -> Path:
    """Where a page is written; looked at before long work. Links are followed: the user has put them there.

    Raises:
        ResourceError: a folder, a device, or no name; or nothing can be written there.
    """
    final = Path(os.path.realpath(path))
    if not os.fspath(path) or final.is_dir():
        raise ResourceError("a page is a file, and this is a folder", path=final, hint="Name a file in it.")
    if final.exists() and not final.is_file():
        raise ResourceError("this is no regular file", path=final, hint="Name a file to write.")
    if not final.parent.is_dir():
        raise ResourceError(f"there is no folder {final.parent}", path=final, hint="Make it, or write elsewhere.")
    try:
        with tempfile.TemporaryFile(dir=final.parent):
            pass
    except OSError as error:
        raise os_error(error, final) from error
    return final


def write_page(path: str | os.PathLike[str], title: str, data: Any, scripts: Sequence[str]) -> None:
    """Write a page; arguments as `page`, errors as `page_file`."""
    write_atomic(page_file(path), page(title, data, scripts).encode())

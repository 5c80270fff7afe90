"""Answers of HTTP servers, looked at before their bodies are taken: status, range and length must be those asked for.

>>> HTTP
('http', 'https')
"""

from __future__ import annotations

from typing import Any

from streamkit.errors import RefusedError
from streamkit.remote import patience
from streamkit.remote.address import Address
from streamkit.remote.connection import Connection
from streamkit.remote.failures import BadAnswer

HTTP = ("http", "https")


async def read_into(connection: Connection, address: Address, view: memoryview, start: int) -> None:
    """One range by HTTP straight into memory: an answer is looked at before its body is taken."""
    headers = {"Range": f"bytes={start}-{start + len(view) - 1}"}
    async with await get(connection, address, headers) as answer:
        if answer.status != 206:
            raise BadAnswer(
                f"the server ignored the byte range and answered {answer.status} ({answer.content_type})",
                hint="Serve it with a server that knows byte ranges.",
            )
        said = answer.headers.get("Content-Range", "")
        if not said.replace(" ", "").startswith(f"bytes{start}-{start + len(view) - 1}/"):
            raise BadAnswer(f"the answer holds {said[:60] or 'an unknown range'!r}, not what was asked for")
        at = 0
        async for data in answer.content.iter_any():
            if at + len(data) > len(view):
                raise BadAnswer("more bytes came than were asked for")
            view[at : at + len(data)] = data
            at += len(data)
        if at != len(view):
            raise BadAnswer(f"{at} bytes came, {len(view)} were asked for")


async def get(connection: Connection, address: Address, headers: dict[str, str]) -> Any:
    """The answer to a GET, to be used with `async with`. Raises aiohttp's errors; RefusedError where https leads to http."""
    import aiohttp

    fs = connection.fs
    session = await fs.set_session()
    options = dict(fs.kwargs)
    answer = await session.get(
        fs.encode_url(address.url),
        **options | {"headers": {**options.get("headers", {}), "Accept-Encoding": "identity", **headers}},
        max_redirects=5,
        read_bufsize=1 << 20,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=patience.PATIENCE.answer_s),
    )
    if answer.url.scheme != address.scheme and address.scheme == "https":
        answer.close()
        raise RefusedError("the server leads from https to http", path=address)
    if answer.status >= 400:
        answer.release()
        answer.raise_for_status()
    return answer

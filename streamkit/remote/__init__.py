"""Remote places: any address that fsspec knows, read and written with patience, named without credentials.

address.py      where something lies; prints without secrets
failures.py     what a server's error means: try again, or not
patience.py     tries, time-outs, waits with jitter
requests.py     which requests bring which ranges (pure)
connection.py   the file system behind an address, its event loop, its bound on requests
http.py         answers of HTTP servers, looked at before they are taken
ranges.py       ranges into memory
transfer.py     whole files, sizes, listings
sending.py      files to servers

>>> is_remote("s3://bucket/out"), is_remote("out"), is_remote("file:///out")
(True, False, False)
"""

from streamkit.remote.address import Address, is_remote, local_only, place

__all__ = ["Address", "is_remote", "local_only", "place"]

"""Real servers on localhost for the tests of remote reading: HTTP with ranges and faults on order, and moto's S3."""

from __future__ import annotations

import contextlib
import http.server
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Served(http.server.ThreadingHTTPServer):
    """A folder served with byte ranges.

    Attributes:
        folder: what is served.
        faults: file name -> faults of the next requests for it, in turn; then all is well again.
        always: file name -> fault of every request for it.
        asked: (file, range or "") of every request so far.
        latency_s: before every answer [s].
        together: where given, requests are answered when so many wait.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.faults: dict[str, list[str]] = {}
        self.always: dict[str, str] = {}
        self.asked: list[tuple[str, str]] = []
        self.latency_s = 0.0
        self.together: threading.Barrier | None = None
        self.lock = threading.Lock()
        self.ended = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def fault(self, name: str) -> str:
        with self.lock:
            waiting = self.faults.get(name)
            return waiting.pop(0) if waiting else self.always.get(name, "")

    def handle_error(self, *_: Any) -> None:
        """A client that went away is no error."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Served

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        name = self.path.partition("?")[0].lstrip("/")
        span = self.headers.get("Range", "")
        self.server.asked.append((name, span))
        time.sleep(self.server.latency_s)
        if self.server.together is not None:
            self.server.together.wait(20)
        fault, _, detail = self.server.fault(name.rpartition("/")[2]).partition(":")
        if fault.isdigit():
            self._send(int(fault), b"<Error>no</Error>", {"Retry-After": detail} if detail else {})
            return
        if fault == "html":
            self._send(200, b"<html>please log in</html>", {"Content-Type": "text/html"})
            return
        if fault == "hang":
            self.server.ended.wait(30)
            self.close_connection = True
            return
        path = self.server.folder / name
        if not path.is_file():
            self._send(404, b"none")
            return
        data, status, headers = path.read_bytes(), 200, {}
        if span and fault != "ignore":
            first, last = (int(n) for n in span.removeprefix("bytes=").split("-"))
            headers["Content-Range"] = f"bytes {first}-{min(last, len(data) - 1)}/{len(data)}"
            data, status = data[first : last + 1], 206
        if fault == "short" and span:  # well-formed, and less than was asked for
            data = data[: len(data) // 2]
            first = int(span.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {first}-{first + len(data) - 1}/{path.stat().st_size}"
        if fault == "flip":
            at = len(data) // 2
            data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        if fault == "flips":  # other bytes each time, in every range
            at, bit = random.randrange(40), random.randrange(1, 256)
            data = bytes(byte ^ bit if i % 40 == at else byte for i, byte in enumerate(data))
        self._send(status, data, headers, fault)

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None, fault: str = "") -> None:
        self.send_response(status)
        for key, value in (
            {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"} | (headers or {})
        ).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault in ("cut", "reset"):
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            if fault == "reset":  # a true RST: nothing lingers
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return
        if fault == "slow":  # a byte now and then
            for i in range(len(data)):
                if self.server.ended.wait(0.05):
                    break
                self.wfile.write(data[i : i + 1])
            return
        self.wfile.write(data)


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Served]:
    """The folder on a server of this machine."""
    server = Served(folder)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()


AWS = {"AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE", "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY"}


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """moto's S3 by HTTP, with a bucket named "data"; its URL. Credentials and endpoint come from the environment."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        url = f"http://{host}:{port}"
        boto3.client("s3", endpoint_url=url, region_name="us-east-1").create_bucket(Bucket="data")
        yield url
    finally:
        server.stop()

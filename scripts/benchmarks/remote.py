"""How much of a server's bandwidth reaches the training loop, when every answer takes 50 ms and connections are warm.

A server of its own process answers byte ranges by HTTP after a wait, and gives all clients together a fixed bandwidth.
What it gives is measured by plain parallel downloads of whole shards, in every round; the loader's figure is the payload of
a whole epoch by the time from its first batch asked for to its last. Beside shuffled reading stands what
`streamkit bench --simulate` says of one such node.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

TITLE = "share of a server's bandwidth at 50 ms a request"
LATENCY_S = 0.05
RATES = (20, 60, 125)  # [MB/s]
TARGET = 0.8
_SAMPLES = {"110 KB": (110_000, 2_000), "16 KB": (16_384, 12_000)}  # bytes a sample, samples
_ORDERS = ("shuffled", "shuffled, empty cache_dir", "stored order")
_CHUNK = 1 << 16


def run(work: Path, rounds: int, scale: float) -> dict[str, Any]:
    """Measure every sample size, order and bandwidth `rounds` times."""
    import streamkit
    from benchmarks import measure  # here, as the server runs this file by itself
    from streamkit.reports.cluster import Cluster, simulate
    from streamkit.stretches import n_together

    begun = os.getloadavg()[0]
    points: list[dict[str, Any]] = []
    for name, (nbytes, n) in _SAMPLES.items():
        source, out = work / f"remote-{nbytes}.npy", work / f"remote-{nbytes}"
        n_scaled = max(512, int(n * scale))
        np.save(source, np.random.default_rng(0).integers(0, 256, (n_scaled, nbytes), np.uint8))
        streamkit.convert(source, out, format="tfrecord", compression="none", shard_size="32MB")
        source.unlink()
        n_rows = n_together(manifest := streamkit.open(out), manifest.splits["train"])
        together = 1 if n_rows is None else int(n_rows[0])
        here = _samples_per_s(streamkit.Loader(out, batch_size=64))
        for rate in RATES:
            with _server(out, rate) as url:
                turns = [
                    (_gives(url, out), *(_delivered(url, order, work / "cache") for order in _ORDERS))
                    for _ in range(rounds)
                ]
                gives, *delivered = (median(column) for column in zip(*turns, strict=True))
                for order, loader in zip(_ORDERS, delivered, strict=True):
                    point = {"samples": name, "order": order, "gives": gives, "loader": loader}
                    if order == "shuffled":
                        node = Cluster(nodes=1, bandwidth=gives * 1e6, latency=LATENCY_S, batch=64)
                        found = simulate(node, n_scaled, nbytes, 0, here, 1 / together)
                        point["model"] = found["samples_per_s"] * nbytes / 1e6
                    points.append(point)
    facts = measure.facts() | {"load": [begun, os.getloadavg()[0]], "rounds": rounds}
    return {"task": "remote", "facts": facts, "latency_s": LATENCY_S, "points": points}


def table(result: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        f"### {TITLE}",
        "",
        f"| samples | order | server gives [MB/s] | loader [MB/s] | share (wanted: {TARGET}) | the model says [MB/s] |",
        "|---|---|---|---|---|---|",
    ]
    for p in result["points"]:
        share = p["loader"] / p["gives"]
        model = f"{p['model']:.0f}" if "model" in p else ""
        lines.append(
            f"| {p['samples']} | {p['order']} | {p['gives']:.0f} | {p['loader']:.0f} | {share:.2f} | {model} |"
        )
    return "\n".join(lines)


def _gives(url: str, out: Path) -> float:
    """MB/s of plain downloads, eight at once."""
    names = [path.name for path in out.glob("*.tfrecord")]
    started = time.perf_counter()
    with ThreadPoolExecutor(8) as pool:
        total = sum(pool.map(lambda name: len(urllib.request.urlopen(f"{url}/{name}").read()), names))
    return total / (time.perf_counter() - started) / 1e6


def _delivered(url: str, order: str, cache: Path) -> float:
    """MB/s of payload that a loop over the loader sees."""
    import streamkit

    kept = {"cache_dir": cache} if "cache" in order else {}
    shutil.rmtree(cache, ignore_errors=True)
    warm = streamkit.Loader(url, batch_size=64, rows=np.arange(512))
    for _ in warm:
        pass  # connections are open now
    loader = streamkit.Loader(url, batch_size=64, shuffle=order != "stored order", **kept)
    started = time.perf_counter()
    nbytes = sum(batch.nbytes for batch in loader)
    return nbytes / (time.perf_counter() - started) / 1e6


def _samples_per_s(loader: Any) -> float:
    """Of an epoch over files of this machine, the second one."""
    for _ in range(2):
        started = time.perf_counter()
        n = sum(len(batch) for batch in loader)
    return n / (time.perf_counter() - started)


@contextlib.contextmanager
def _server(folder: Path, rate: float) -> Iterator[str]:
    command = [sys.executable, __file__, str(folder), str(LATENCY_S), str(rate)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


class _Server:
    """Answers GET and HEAD from memory; `free_at` is when the bandwidth that was given away is through."""

    def __init__(self, folder: Path, latency_s: float, rate: float) -> None:
        self.files = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.latency_s, self.rate, self.free_at = latency_s, rate * 1e6, 0.0

    async def client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                await asyncio.sleep(self.latency_s)
                await self.answer(head, writer)
        writer.close()

    async def answer(self, head: list[str], writer: asyncio.StreamWriter) -> None:
        method, path, _ = head[0].split(" ")
        data = memoryview(self.files[path.lstrip("/")])
        status, span = "200 OK", ""
        for line in head:
            if line.lower().startswith("range: bytes="):
                first, last = (int(n) for n in line[13:].split("-"))
                span = f"Content-Range: bytes {first}-{last}/{len(data)}\r\n"
                status, data = "206 Partial Content", data[first : last + 1]
        writer.write(f"HTTP/1.1 {status}\r\nAccept-Ranges: bytes\r\n{span}Content-Length: {len(data)}\r\n\r\n".encode())
        for at in range(0, len(data) if method == "GET" else 0, _CHUNK):
            part = data[at : at + _CHUNK]
            now = time.monotonic()
            self.free_at = max(self.free_at, now) + len(part) / self.rate
            if self.free_at - now > 0.005:
                await asyncio.sleep(self.free_at - now)
            writer.write(part)
            await writer.drain()


async def _serve() -> None:
    there = _Server(Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]))
    server = await asyncio.start_server(there.client, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve())

"""A model of a cluster that trains from object storage: throughput, cold start, egress. Arithmetic, nothing is measured here.

A node fetches each sample with one range request, or a chunk or a stretch with all its samples, `in_flight` of them at a
time, over a link of its own; the storage itself is taken to be as fast as it is asked. With s stored bytes and r requests
a sample, a node's samples/s are the smallest of

    link       bandwidth / s
    requests   in_flight / (r * latency + s / bandwidth)    Source: Little's law
    client     1 / (r * CPU time of a request)              one thread of Python sends and receives them all
    CPU        what the loader reaches on this machine

and all nodes step together, each with batch / nodes samples. A cold start is: the manifest (one latency), the index (one
latency and its bytes), and the first batch (its rounds of requests, each for another chunk where there are any, their
bytes, its decoding). Every node reads the whole index; an epoch reads every sample once. Stragglers, retries, and limits
of the storage are not in the model. Beside measured runs of one node, over HTTP: `scripts/benchmark --tasks remote`.

    >>> cluster = Cluster.parse("nodes=4,bandwidth=8Gbit,latency=50ms,batch=64,in_flight=10")
    >>> found = simulate(cluster, n_samples=6400, sample_nbytes=100_000, index_nbytes=0, cpu_samples_per_s=5000)
    >>> found["bound"], round(found["samples_per_s"]), round(found["epoch_s"], 1)
    ('requests', 798, 8.0)
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from streamkit.errors import UsageError
from streamkit.remote.connection import MAX_REQUESTS
from streamkit.reports.text import human, table
from streamkit.units import size

REQUEST_S = 0.34e-3  # CPU time of a request over HTTP, measured on AMD EPYC at 3 GHz with aiohttp 3.13; s3fs takes more
_EXAMPLE = "nodes=64,bandwidth=10Gbit,latency=30ms,batch=1024"
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass(frozen=True)
class Cluster:
    """Nodes, each with its own link [B/s] and time to first byte of a request [s]; samples a step of all nodes together."""

    nodes: int
    bandwidth: float
    latency: float
    batch: int
    in_flight: int = MAX_REQUESTS

    def __post_init__(self) -> None:
        if min(self.nodes, self.batch, self.in_flight) < 1 or self.bandwidth <= 0 or self.latency < 0:
            raise UsageError(
                "nodes, batch, in_flight and bandwidth of a cluster are above 0", hint=f"Write {_EXAMPLE}."
            )
        if self.batch < self.nodes:
            raise UsageError(f"a batch of {self.batch} leaves some of {self.nodes} nodes without a sample")

    @classmethod
    def parse(cls, text: str) -> Self:
        """The cluster that a text such as "nodes=64,bandwidth=10Gbit,latency=30ms,batch=1024" describes.

        Raises:
            UsageError: a word or a unit that is not known, or one that is missing.
        """
        words = dict(part.partition("=")[::2] for part in text.split(","))
        missing = {"nodes", "bandwidth", "latency", "batch"} - set(words)
        unknown = set(words) - {"nodes", "bandwidth", "latency", "batch", "in_flight"}
        if missing or unknown:
            named = f"{sorted(unknown)[0]!r} is not known" if unknown else f"{sorted(missing)[0]} is missing"
            raise UsageError(f"of the cluster, {named}", hint=f"Write {_EXAMPLE}[,in_flight={MAX_REQUESTS}].")
        whole = {name: _whole(name, words[name]) for name in ("nodes", "batch", "in_flight") if name in words}
        return cls(bandwidth=_bandwidth(words["bandwidth"]), latency=_latency(words["latency"]), **whole)


def _whole(name: str, text: str) -> int:
    if not text.isdecimal():
        raise UsageError(f"{name} is {text!r}, expected a whole number")
    return int(text)


def _bandwidth(text: str) -> float:
    """Bytes a second of "10Gbit" or "1.25GB"."""
    return size(text[:-3]) / 8 if text.endswith("bit") else float(size(text))


def _latency(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(us|ms|s)", text)
    if match is None:
        raise UsageError(f"latency is {text!r}", hint="Write it like 30ms.")
    return float(match[1]) * _SECONDS[match[2]]


def simulate(
    cluster: Cluster,
    n_samples: int,
    sample_nbytes: float,
    index_nbytes: int,
    cpu_samples_per_s: float,
    requests_a_sample: float = 1.0,
) -> dict[str, Any]:
    """What the model says.

    Args:
        cluster: the machines and their network.
        n_samples: samples of the split.
        sample_nbytes: mean stored size of one [B].
        index_nbytes: size of the split's index file [B].
        cpu_samples_per_s: what one node's loader makes when reading costs nothing.
        requests_a_sample: above 0; below 1 where samples share chunks or stretches.

    Returns:
        JSON-able: node_samples_per_s by each limit, bound (the smallest of them), samples_per_s and steps_per_s of all
        nodes, epoch_s, cold_start_s, egress_bytes (an epoch, and each start), requests_per_s.
    """
    limits = {
        "link": cluster.bandwidth / sample_nbytes,
        "requests": cluster.in_flight / (requests_a_sample * cluster.latency + sample_nbytes / cluster.bandwidth),
        "client": 1 / (requests_a_sample * REQUEST_S),
        "CPU": float(cpu_samples_per_s),
    }
    bound = min(limits, key=lambda name: limits[name])
    together = cluster.nodes * limits[bound]
    local = cluster.batch / cluster.nodes
    first_batch = math.ceil(local * max(1, requests_a_sample) / cluster.in_flight) * cluster.latency
    first_nbytes = min(n_samples, local / min(1, requests_a_sample)) * sample_nbytes
    first_batch += first_nbytes / cluster.bandwidth + local / cpu_samples_per_s
    return {
        "node_samples_per_s": limits,
        "bound": bound,
        "samples_per_s": together,
        "steps_per_s": together / cluster.batch,
        "epoch_s": math.ceil(n_samples / cluster.batch) * cluster.batch / together,
        "cold_start_s": 2 * cluster.latency + index_nbytes / cluster.bandwidth + first_batch,
        "egress_bytes": {"epoch": round(n_samples * sample_nbytes), "start": cluster.nodes * index_nbytes},
        "requests_per_s": together * requests_a_sample,
    }


def as_text(cluster: Cluster, found: Mapping[str, Any]) -> str:
    """The model's answer as tables."""
    rows = [("limit of a node", "samples/s")]
    rows += [(name, f"{rate:,.0f}") for name, rate in found["node_samples_per_s"].items()]
    facts = [
        (f"{cluster.nodes} nodes", f"{found['samples_per_s']:,.0f} samples/s, {found['steps_per_s']:.2f} steps/s"),
        ("bound by", str(found["bound"])),
        ("epoch", f"{found['epoch_s']:,.1f} s"),
        ("cold start", f"{found['cold_start_s']:.2f} s"),
        (
            "egress",
            f"{human(found['egress_bytes']['epoch'])} an epoch, {human(found['egress_bytes']['start'])} a start",
        ),
        ("requests", f"{found['requests_per_s']:,.0f} a second"),
    ]
    return "a model, not a measurement:\n\n" + table(rows) + "\n\n" + table(facts)

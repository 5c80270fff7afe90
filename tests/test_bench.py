"""`streamkit bench`: figures that add up, advice that was tried, and a cluster model that a simulated clock agrees with."""

from __future__ import annotations

import heapq
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from browser import launched, opened
from converting import FORMATS, psnr, python
from hypothesis import given
from hypothesis import strategies as st
from reading import convert, numbered, picture_folder

import streamkit
import streamkit.commands.bench
import streamkit.reports.bench
from streamkit.cli import main
from streamkit.errors import UsageError
from streamkit.loader import Loader
from streamkit.reports.advice import Change, decibels, gain
from streamkit.reports.bench import as_text, bench, conclusion, simulation, write_html
from streamkit.reports.cluster import REQUEST_S, Cluster, simulate
from streamkit.reports.limits import jpeg_rate, memcpy_rate, read_rate
from streamkit.reports.stages import STAGES, per_item

QUICK = {"budget_s": 0.02, "n_samples": 24}


def numpy_frontend(path: str | os.PathLike[str], options: dict[str, Any]) -> Iterable[Any]:
    """A frontend that costs something: a copy of each batch."""

    class Copies:
        def __iter__(self) -> Iterator[Any]:
            return (np.array(batch[0]) for batch in Loader(path, **options))

    return Copies()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEGs far larger than they are wanted."""
    root = tmp_path_factory.mktemp("large")
    return convert(picture_folder(root / "src", [(600, 800)] * 20 + [(700, 600)] * 10), root / "out")


def test_shares_add_up_and_the_largest_bounds(large: Path) -> None:
    found = bench(large, image_size=(64, 64), frontend=numpy_frontend, **QUICK)
    assert list(found["stages"]) == [*STAGES, "frontend"]
    assert sum(stage["share"] for stage in found["stages"].values()) == pytest.approx(100, abs=0.5)
    assert found["bound"] == max(found["stages"], key=lambda name: found["stages"][name]["seconds"])
    assert found["stages"]["decode"]["share"] > found["stages"]["batch"]["share"]
    total = sum(stage["seconds"] for stage in found["stages"].values())
    assert found["one_thread"] == pytest.approx(1 / total, rel=0.01)
    assert found["loader"] > 0 < found["frontend"]
    assert set(found["limits"]) >= {
        "first read",
        "page cache read",
        "memcpy of a batch",
        "bare JPEG decode, one thread",
    }
    json.dumps(found, allow_nan=False)
    for part in ("decode", "page cache read", "Loader,", "tf.data,", "at conversion would make it about"):
        assert part in as_text(found)


@pytest.mark.parametrize("kind", ["folder", "slabs"])
def test_adopted_files(tmp_path: Path, kind: str) -> None:
    """A folder has no shards; of a slab every chunk is decoded, also those that hold a part of each row."""
    if kind == "folder":
        files = picture_folder(tmp_path / "src", [(60, 80)] * 20)
    else:
        files = tmp_path / "src.h5"
        with h5py.File(files, "w") as file:
            x = np.arange(60 * 9 * 9, dtype=np.float32).reshape(60, 9, 9)
            file.create_dataset("x", data=x, chunks=(7, 4, 9), compression="gzip", shuffle=True)
    streamkit.index(files, tmp_path / "out")
    found = bench(tmp_path / "out", image_size=(32, 32), **QUICK)
    assert all(found["stages"][name]["seconds"] > 0 for name in ("read", "decode", "batch"))
    assert found["loader"] > 0 < found["limits"]["page cache read"]["samples_per_s"]


def test_advice_was_tried_and_says_what_it_costs(large: Path, tmp_path: Path) -> None:
    """What it says of bytes and fidelity is what converting so gives."""
    found = bench(large, image_size=(64, 64), budget_s=0.02, n_samples=30)
    advice = {change["what"]: change for change in found["advice"]}
    assert [c["gain"] for c in found["advice"]] == sorted((c["gain"] for c in found["advice"]), reverse=True)
    change = advice["--resize 80"]
    source = large.parent / "src"
    smaller = convert(source, tmp_path / "smaller", resize="80")
    sizes = [sum(shard.stat().st_size for shard in out.glob("*.tfrecord")) for out in (smaller, large)]
    assert change["bytes_ratio"] == pytest.approx(
        sizes[0] / sizes[1], rel=0.2
    )  # frames and labels are in the files too
    options = {"batch_size": None, "shuffle": False, "image_size": (64, 64), "dtype": "uint8", "fields": "image"}
    pairs = zip(Loader(large, **options), Loader(smaller, **options), strict=True)
    assert change["psnr"] == pytest.approx(np.mean([psnr(a, b) for a, b in pairs]), abs=0.3)
    raw = advice["--resize 64x64 --encode raw"]
    assert raw["gain"] >= change["gain"]
    assert "PSNR" in conclusion(found)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("compression", ["none", "auto", "zlib"])
def test_arrays_of_every_storage(tmp_path: Path, format: str, compression: str) -> None:
    codec = {"zlib": {"hdf5": "gzip", "tfrecord": "zlib"}[format]}.get(compression, compression)
    out = convert(numbered(tmp_path / "src", 300, width=512), tmp_path / "out", format, compression=codec)
    found = bench(out, batch_size=16, **QUICK)
    assert found["image_size"] is None
    assert (found["stages"]["decode"]["seconds"] > 0) == (compression != "none")
    assert all("PSNR" not in change["text"] for change in found["advice"])


def test_raw_pictures_and_ragged_arrays(tmp_path: Path, ragged: Path) -> None:
    out = convert(
        picture_folder(tmp_path / "src", [(32, 40)] * 6), tmp_path / "raw", "hdf5", encode="raw", compression="none"
    )
    assert bench(out, **QUICK)["image_size"] == [32, 40]
    assert bench(out, image_size=(16, 16), **QUICK)["stages"]["resize"]["seconds"] > 0
    assert bench(convert(ragged, tmp_path / "ragged"), **QUICK)["loader"] > 0


def test_nothing_is_advised_that_helps_little() -> None:
    assert gain(1.0, 0.0) == 1
    assert gain(1.0, 0.5) == 2
    assert gain(1.0, 1.0) == 100  # no promise beyond that
    text = Change('dtype="uint8"', 1.4, 1.0, None).text()
    assert "when reading" in text and "the same values" in text


def test_fidelity_is_psnr() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 256, (9, 7, 3)).astype(np.uint8) for _ in range(2))
    assert decibels(a, b) == pytest.approx(psnr(a, b))
    assert decibels(a, a) == 99


def test_timing_counts_what_was_done() -> None:
    calls: list[int] = []
    assert 0 < per_item(calls.append, 7, budget_s=10) < 1
    assert calls == [0] + list(range(7)) * 5


def test_limits_of_the_machine(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(1 << 20))
    assert read_rate([tmp_path / "x", tmp_path / "x"]) > 1e6
    assert memcpy_rate(0.01) > 1e7
    assert jpeg_rate([b"no JPEG", b"\xff\xd8\xff broken"]) is None


# The command


def test_the_command(large: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for args in (["--split", "no"], ["--samples", "0"], ["--image-size", "3"], ["--simulate", "nodes=1"]):
        assert main(["bench", str(large), *args]) == 2
    assert main(["bench", str(tmp_path)]) == 2
    assert "nodes=64,bandwidth=10Gbit" in capsys.readouterr().err


def test_the_page_s_place_is_looked_at_first_and_written_last(
    large: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = bench(large, image_size=(64, 64), **QUICK)
    target = tmp_path / "no" / "x.html"

    def measured(*args: Any, **options: Any) -> dict[str, Any]:
        target.parent.rmdir()
        return found

    monkeypatch.setattr(streamkit.reports.bench, "bench", measured)
    assert main(["bench", str(large), "--html", str(target)]) == 5
    assert f"there is no folder {target.parent}. Make it" in capsys.readouterr().err
    target.parent.mkdir()
    assert main(["bench", str(large), "--html", str(target)]) == 5
    assert "page cache read" in capsys.readouterr().out


def test_its_json_is_json(
    large: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamkit.commands.bench, "_tensorflow", lambda: None)
    words = ["--json", "--samples", "4", "--image-size", "32x32"]
    assert main(["bench", str(large), *words, "--simulate", "nodes=1,bandwidth=1GB,latency=1ms,batch=8"]) == 0

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    assert json.loads(capsys.readouterr().out, parse_constant=refuse)["simulation"]["bound"]


def test_a_batch_is_no_larger_than_the_split(
    large: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["bench", str(large), "--batch-size", "3000000"]) == 2
    said = capsys.readouterr().err
    assert "a batch of 3000000 samples is wanted, split 'train' has 30. Use --batch-size 30 or less." in said
    assert bench(large, image_size=(8, 8), **QUICK)["batch_size"] == 30
    monkeypatch.setattr(streamkit.reports.bench, "_MAX_ROWS", 1)
    seen: list[int] = []

    def frontend(path: str | os.PathLike[str], options: dict[str, Any]) -> Iterable[Any]:
        seen.append(len(options["rows"]))
        return numpy_frontend(path, options)

    bench(large, batch_size=30, image_size=(8, 8), frontend=frontend, **QUICK)
    assert set(seen) == {16 * 30}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with launched() as browser:
        yield browser


def test_tensorflow_keeps_quiet(large: Path) -> None:
    pytest.importorskip("tensorflow")
    script = """
import functools, sys
sys.modules["sklearn"] = None  # Keras imports it if it can, and says nothing of it
from streamkit.cli import main
from streamkit.reports import bench
bench.bench = functools.partial(bench.bench, budget_s=0.02)
sys.exit(main(sys.argv[1:]))
"""
    run = python(script, "bench", large, "--quiet", "--samples", 8, "--image-size", "8x8")
    assert (run.returncode, run.stderr) == (0, "") and "tf.data, " in run.stdout


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1400, "light")])
def test_the_page(chromium: Any, large: Path, tmp_path: Path, width: int, scheme: str) -> None:
    found = bench(large, image_size=(64, 64), **QUICK)
    found["simulation"] = simulation(large, found, Cluster.parse("nodes=2,bandwidth=1Gbit,latency=5ms,batch=64"))
    target = tmp_path / "bench.html"
    write_html(target, found)
    assert str(large.parent) not in target.read_text("utf-8")
    with opened(chromium, target, width, 800, scheme) as tab:
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        text = tab.locator("main").inner_text()
        for part in ("decode", "page cache read", "What would help", "bound by", "cold start"):
            assert part in text
        assert tab.locator(".share span").count() == 6


# The model


def test_the_model_s_words() -> None:
    cluster = Cluster.parse("nodes=64,bandwidth=10Gbit,latency=30ms,batch=1024")
    assert cluster == Cluster(64, 1.25e9, 0.03, 1024)
    assert Cluster.parse("nodes=1,bandwidth=2GB,latency=0.5s,batch=8,in_flight=3") == Cluster(1, 2e9, 0.5, 8, 3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nodes=2", "bandwidth is missing"),
        ("nodes=2,bandwidth=1Gbit,latency=1ms,batch=8,color=red", "'color' is not known"),
        ("nodes=x,bandwidth=1Gbit,latency=1ms,batch=8", "nodes is 'x'"),
        ("nodes=2,bandwidth=fast,latency=1ms,batch=8", "'fast' is no size"),
        ("nodes=2,bandwidth=1Gbit,latency=1,batch=8", "Write it like 30ms"),
        ("nodes=0,bandwidth=1Gbit,latency=1ms,batch=8", "above 0"),
        ("nodes=9,bandwidth=1Gbit,latency=1ms,batch=8", "without a sample"),
    ],
)
def test_the_model_refuses(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Cluster.parse(text)


def played(cluster: Cluster, n: int, nbytes: float, cpu: float) -> float:
    """Samples a second of one node, request by request on a simulated clock: slots wait `latency`, then share one link,
    then one client, then one decoder. Nothing of the model's formula is in it."""
    slots = [0.0] * cluster.in_flight
    link = client = decoder = 0.0
    for _ in range(n):
        begun = heapq.heappop(slots)
        link = max(link, begun + cluster.latency) + nbytes / cluster.bandwidth
        heapq.heappush(slots, link)
        client = max(client, link) + REQUEST_S
        decoder = max(decoder, client) + 1 / cpu
    return n / decoder


@given(
    in_flight=st.integers(1, 128),
    latency=st.floats(0, 0.2),
    bandwidth=st.floats(1e7, 1e10),
    nbytes=st.floats(1e3, 1e6),
    cpu=st.floats(100, 1e5),
)
def test_the_model_agrees_with_a_simulated_clock(
    in_flight: int, latency: float, bandwidth: float, nbytes: float, cpu: float
) -> None:
    cluster = Cluster(1, bandwidth, latency, 32, in_flight)
    found = simulate(cluster, 1000, nbytes, 0, cpu)["samples_per_s"]
    assert played(cluster, 20 * in_flight + 2000, nbytes, cpu) == pytest.approx(found, rel=0.12)


def test_the_model_s_sums(large: Path) -> None:
    cluster = Cluster(4, 1e8, 0.02, 64, 8)
    found = simulate(cluster, 1000, 5e4, 2000, 1e9)
    assert found["egress_bytes"] == {"epoch": 50_000_000, "start": 8000}
    assert found["epoch_s"] * found["steps_per_s"] == pytest.approx(16)
    assert found["cold_start_s"] == pytest.approx(2 * 0.02 + 2e-5 + 2 * 0.02 + 16 * 5e4 / 1e8, rel=1e-3)


def test_one_node_without_a_network_is_the_measured_run(large: Path) -> None:
    found = bench(large, image_size=(512, 512), **QUICK)  # so much that a client of servers would be the faster
    alone = simulation(large, found, Cluster(1, 1e15, 0.0, 32))
    assert alone["node_samples_per_s"]["CPU"] == found["loader"]
    assert alone["samples_per_s"] == min(found["loader"], 1 / REQUEST_S)


def test_a_chunk_is_one_request_of_the_model(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2000, 16), np.float32))
    streamkit.convert(tmp_path / "x.npy", tmp_path / "out", format="hdf5", compression="gzip", workers=1)
    found = simulation(tmp_path / "out", {"split": "train", "loader": 1e4}, Cluster(1, 1e9, 0.05, 64))
    assert found["samples_per_s"] > 100 * found["requests_per_s"]


def test_samples_that_share_chunks_share_requests() -> None:
    cluster = Cluster(1, 125e6, 0.05, 256)
    alone, shared = (simulate(cluster, 50_000, 3000, 0, 1e5, share) for share in (1.0, 1 / 256))
    assert alone["bound"] == "client" and shared["bound"] == "link"
    assert shared["samples_per_s"] == pytest.approx(125e6 / 3000)
    assert shared["requests_per_s"] == pytest.approx(shared["samples_per_s"] / 256)

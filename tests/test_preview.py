"""`streamkit preview`: the page shows what is there, can be used, and lets no text from data do anything."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import launched, opened
from converting import class_folders, columns, encoded, picture, write_files
from hypothesis import given
from hypothesis import strategies as st
from reading import convert, flip, numbered, ragged_folder

from streamkit import ResourceError
from streamkit.cli import main
from streamkit.reports import views
from streamkit.reports.page import escaped, page, write_page
from streamkit.reports.preview import _item, _Light, preview, write_preview
from streamkit.schema import Field, Schema

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&amp;\"'\u2028"


class Parsed(HTMLParser):
    """Elements and attributes of a page, and the data in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.addresses: list[str] = []
        self.data = ""
        self._inside = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        self._inside = tag == "script" and ("id", "data") in attrs

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.data += data

    def handle_endtag(self, tag: str) -> None:
        self._inside = False


def written(out: Path, n: int = 300) -> tuple[Path, dict[str, Any]]:
    target = out.parent / f"{out.name}.html"
    write_preview(out, target, n)
    return target, json.loads(Parsed(target.read_text("utf-8")).data)


# What is in it


@given(text=st.text() | st.just(HOSTILE))
def test_no_text_ends_the_script_or_begins_an_element(text: str) -> None:
    parsed = Parsed(page(text, {"text": text, text: 1}, ["charts.js"]))
    assert json.loads(parsed.data) == {"text": text, text: 1}
    assert parsed.tags["script"] == 2
    assert parsed.tags["img"] == 0
    assert not {"<", ">", "&", "\u2028"} & set(escaped(text))


def test_the_page_needs_nothing_else(tmp_path: Path, photos: Path) -> None:
    target, data = written(convert(photos, tmp_path / "out"))
    text = target.read_text("utf-8")
    assert Parsed(text).addresses == []
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert str(tmp_path) not in text
    assert {c["name"]: c["count"] for c in data["classes"]} == {"cat": 4, "dog": 4}
    assert {item["key"] for item in data["items"]} == set(columns(tmp_path / "out", "label"))
    (turned,) = [item for item in data["items"] if item["key"] == "cat/turned.jpg"]
    assert (turned["views"][0]["width"], turned["views"][0]["height"]) == (20, 30)
    assert [20, 30, 1] in data["sizes"]["points"]


def test_of_many_a_fair_part_is_shown_and_said(tmp_path: Path) -> None:
    out = convert(numbered(tmp_path / "src", 2000), tmp_path / "out", split={"train": 0.8, "val": 0.2})
    data = preview(out, 200)
    assert len(data["items"]) == 200
    assert len({item["key"] for item in data["items"]}) == 200
    assert data["samples"] == 2000
    assert 20 <= Counter(item["split"] for item in data["items"])["val"] <= 60
    assert min(Counter(item["label"] for item in data["items"]).values()) > 40


def test_of_very_many_classes_the_largest_are_listed(chromium: Any, tmp_path: Path) -> None:
    labels = np.concatenate([np.arange(30_000), np.repeat(29_999, 5)])
    np.savez(tmp_path / "table.npz", x=np.zeros((len(labels), 1), np.float32), y=labels)
    target, data = written(convert(tmp_path / "table.npz", tmp_path / "out", split={"train": 1.0}))
    assert len(data["classes"]) == 1000
    assert data["classes"][-1] == {"name": "29999", "count": 6}
    assert data["more_classes"] == {"count": 29_000, "samples": 29_000}
    with opened(chromium, target) as tab:
        assert tab.locator(".card").count() == 300
        assert "30,000 classes" in tab.locator("main").inner_text()
        assert "and 29,000 smaller ones with 29,000 samples" in tab.locator("main").inner_text()


def test_long_lists_are_drawn(chromium: Any, tmp_path: Path, photos: Path) -> None:
    data = preview(convert(photos, tmp_path / "out"))
    data["items"] = [item | {"views": [], "label": "cat"} for item in data["items"] for _ in range(17_000)]
    target = tmp_path / "page.html"
    target.write_text(page("x", data, ["charts.js", "preview.js"]), "utf-8")
    with opened(chromium, target) as tab:
        assert tab.locator(".card").count() == len(data["items"])


def test_brightness_and_channels_are_those_of_all_pixels() -> None:
    light = _Light()
    pictures = [picture(8, 5, seed=1), picture(30, 20, seed=2)]
    for pixels in pictures:
        light.add(pixels)
    every = np.concatenate([p.reshape(-1, 3) for p in pictures]).astype(np.float64)
    facts = light.facts()
    assert facts is not None
    np.testing.assert_allclose(facts["mean"], every.mean(axis=0), atol=0.01)
    np.testing.assert_allclose(facts["std"], every.std(axis=0), atol=0.01)
    assert sum(facts["bins"]) == 2


def test_skipped_items_are_named_with_their_reasons(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "src", {"a": 3})
    (source / "a" / "broken.jpg").write_bytes(b"\xff\xd8\xff no")
    data = preview(convert(source, tmp_path / "out", on_bad="skip"))
    assert data["skipped"]["count"] == 1
    (item,) = data["skipped"]["items"]
    assert item["key"] == "a/broken.jpg"
    assert "JPEG" in item["reason"]


def test_errors(tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = convert(photos, tmp_path / "out")
    target = tmp_path / "x.html"
    assert main(["preview", str(tmp_path / "no"), "--html", str(target)]) == 2
    assert main(["preview", str(out), "--html", str(target), "--samples", "0"]) == 2
    assert main(["preview", str(out), "--html", str(tmp_path / "no" / "x.html")]) == 5
    flip(out / "train-00000.tfrecord", 300)
    for nowhere in (tmp_path / "no" / "x.html", tmp_path):  # known before a sample is read
        assert main(["preview", str(out), "--html", str(nowhere)]) == 5
    assert main(["preview", str(out), "--html", str(target)]) == 4
    assert not target.exists()
    assert "train-00000.tfrecord record" in capsys.readouterr().err


# How values are drawn


@given(n=st.integers(1, 2000), width=st.integers(1, 8), seed=st.integers(0, 99))
def test_lines_are_short_and_lose_no_extreme(n: int, width: int, seed: int) -> None:
    array = np.random.default_rng(seed).normal(size=(n, width))
    drawn = views.lines(array)
    assert len(drawn) == width
    for column, values in zip(array.T, drawn, strict=True):
        assert len(values) <= 241
        assert max(values) == pytest.approx(column.max(), rel=1e-3)
        assert min(values) == pytest.approx(column.min(), rel=1e-3)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (np.zeros(5), "lines"),
        (np.zeros((64, 2)), "lines"),
        (np.zeros((2, 64)), "lines"),
        (np.full((3, 2), np.nan), "lines"),
        (np.zeros((40, 30)), "map"),
        (np.full((40, 30), np.inf), "map"),
        (np.zeros((6, 40, 30), np.int16), "map"),
        (np.zeros((2, 3, 40, 30), np.float32), "map"),
        (np.zeros((16, 16, 3), np.uint8), "image"),
        (np.zeros((0, 3)), "text"),
        (np.float32(2.5), "text"),
        (np.int64(7), "text"),
        ("a text", "text"),
    ],
)
def test_every_kind_of_value_has_a_view(value: Any, kind: str) -> None:
    found = views.view("x", value)
    assert found["kind"] == kind
    json.dumps(found, allow_nan=False)


LARGEST = float(np.finfo(np.float64).max)


@pytest.mark.parametrize(
    ("values", "bins"),
    [
        ([1152921504606846976] * 2, {2}),
        ([2**63 - 1, 2**63 - 2, 2**63 - 3000], {0, 1, 2}),
        ([-1.7e308, 0.0, 1.7e308], {0, 1}),
        ([2.5, 2.5], {2}),
        ([0.0, 1.0, 2.0, 2.0], {0, 1, 2}),
    ],
)
def test_every_column_of_numbers_has_a_histogram(values: list[float], bins: set[int]) -> None:
    found = views.histogram(np.array(values, np.float64))
    assert set(found["bins"]) == bins
    assert sum(found["bins"]) == len(values)
    assert (found["low"], found["high"]) == (min(map(float, values)), max(map(float, values)))


def test_the_largest_numbers_are_drawn(chromium: Any, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("a,b\n" + "".join(f"1152921504606846976,{v!r}\n" for v in (-1.7e308, 0.0, 1.7e308)))
    lines, maps = tmp_path / "lines.npy", tmp_path / "maps.npy"
    np.save(lines, np.array([[LARGEST, 0.0, -LARGEST]] * 2))
    np.save(maps, np.linspace(-1, 1, 2400).reshape(2, 30, 40) * LARGEST)
    for source in (rows, lines, maps):
        target, _ = written(convert(source, tmp_path / f"out-{source.stem}"))
        with opened(chromium, target) as tab:
            assert tab.locator(".card").count() > 1
            assert "NaN" not in tab.content()


def test_heat_maps_rise_with_the_values() -> None:
    pixels = views.heat_map(np.arange(200.0).reshape(10, 20)).astype(int)
    assert pixels.shape == (10, 20, 4)
    assert pixels[0, 0, :3].sum() < pixels[5, 0, :3].sum() < pixels[-1, -1, :3].sum()
    assert views.heat_map(np.array([[np.nan, 1.0]]))[0, :, 3].tolist() == [0, 255]


def test_masks_are_transparent_where_there_is_nothing() -> None:
    import base64
    import io

    import PIL.Image

    values = np.zeros((4, 6, 1), np.uint8)
    values[1:3, 2:4] = 255
    found = views.mask(values)
    assert found["values"] == [0, 255]
    pixels = np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(found["src"].partition(",")[2]))))
    np.testing.assert_array_equal(pixels[:, :, 3] > 0, values[:, :, 0] > 0)


def detection(monkeypatch: pytest.MonkeyPatch) -> tuple[Schema, dict[str, Any]]:
    """An image with a mask and two boxes, as conversion stores them."""
    monkeypatch.setattr(Field, "__post_init__", lambda self: None)
    fields = [
        Field("image", "image", "uint8", (None, None, 3), "jpeg"),
        Field("mask", "mask", "uint8", (None, None, 1)),
    ]
    fields += [Field(f"objects/{side}", "array", "int64", (None,)) for side in ("xmin", "ymin", "xmax", "ymax")]
    fields += [Field("objects/class", "array", "int64", (None,), class_names=("cat", HOSTILE))]
    mask = np.zeros((50, 100, 1), np.uint8)
    mask[10:20] = 3
    sample = {"key": "a/b.jpg", "image": picture(50, 100), "mask": mask, "objects/class": np.array([1, 0])}
    corners = {"xmin": [10, 0], "ymin": [5, 0], "xmax": [30, 100], "ymax": [25, 50]}
    return Schema(tuple(fields)), sample | {f"objects/{side}": np.array(v) for side, v in corners.items()}


def test_boxes_become_shares_with_their_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    item = _item(*detection(monkeypatch), _Light())
    assert [view["kind"] for view in item["views"]] == ["image", "mask", "boxes"]
    assert item["views"][2]["boxes"] == [[0.1, 0.1, 0.3, 0.5], [0, 0, 1, 1]]
    assert item["views"][2]["names"] == [HOSTILE, "cat"]
    assert views.relative_boxes(np.array([[0.1, 0.2, 0.5, 1.0]]), 300, 200) == [[0.1, 0.2, 0.5, 1.0]]


# In a browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with launched() as browser:
        yield browser


def test_it_can_be_clicked_filtered_and_searched(chromium: Any, tmp_path: Path) -> None:
    source = class_folders(tmp_path / "src", {"bird": 5, "cat": 9, "dog": 4})
    (source / "cat" / "broken.jpg").write_bytes(b"\xff\xd8\xff no")
    target, _ = written(convert(source, tmp_path / "out", on_bad="skip"))
    with opened(chromium, target) as tab:
        cards = tab.locator(".card")
        assert cards.count() == 18
        assert tab.locator("h3").all_inner_texts() == ["bird", "cat", "dog"]
        tab.locator("button.bar", has_text="cat").click()
        assert cards.count() == 9
        assert tab.get_by_label("All classes").input_value() == "=cat"
        tab.locator("button.bar", has_text="cat").click()
        tab.get_by_label("All classes").select_option("dog")
        assert cards.count() == 4
        tab.get_by_label("Search by key").fill("0002")
        assert cards.count() == 1
        tab.get_by_label("All classes").select_option("")
        assert cards.count() == 3
        cards.first.click()
        dialog = tab.locator("dialog")
        assert dialog.is_visible()
        assert "bird/0002.jpg" in dialog.inner_text()
        assert "16 x 12" in dialog.inner_text()
        dialog.get_by_text("Close").click()
        assert not dialog.is_visible()
        tab.get_by_label("Search by key").fill("")
        tab.get_by_text("1 items were skipped").click()
        assert "cat/broken.jpg" in tab.locator("details").inner_text()


def test_pictures_get_their_bytes_when_they_come_near(chromium: Any, tmp_path: Path) -> None:
    target, _ = written(convert(class_folders(tmp_path / "src", {"a": 200}), tmp_path / "out"))
    with opened(chromium, target, 390, 700) as tab:
        last = tab.locator(".card img").last
        assert last.get_attribute("src") is None
        last.scroll_into_view_if_needed()
        tab.wait_for_selector(".card:last-child img[src]")
        shown = tab.evaluate("[...document.querySelectorAll('.card img')].filter((i) => i.src).length")
        assert 0 < shown < 200


@pytest.mark.parametrize(("width", "scheme"), [(320, "dark"), (390, "light"), (1600, "dark")])
def test_it_fits_phones_and_wide_screens_light_and_dark(chromium: Any, tmp_path: Path, width: int, scheme: str) -> None:
    source = class_folders(tmp_path / "src", {"a" * 60: 8, "b": 3})
    target, _ = written(convert(source, tmp_path / "out"))
    with opened(chromium, target, width, 800, scheme) as tab:
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        n_columns = tab.evaluate(
            "getComputedStyle(document.querySelector('.cards')).gridTemplateColumns.split(' ').length"
        )
        assert n_columns == 2 if width < 400 else n_columns > 5
        ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", ground))) > 380) == (scheme == "light")


def test_masks_and_boxes_lie_over_their_image_and_can_be_hidden(
    chromium: Any, tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = preview(convert(photos, tmp_path / "out"), 1)
    data["items"] = [{"split": "train"} | _item(*detection(monkeypatch), _Light())]
    target = tmp_path / "page.html"
    target.write_text(page("x", data, ["charts.js", "preview.js"]), "utf-8")
    with opened(chromium, target) as tab:
        image, mask, boxes = (tab.locator(f".card {what}") for what in ("img:not(.over)", "img.over", "svg.over"))
        assert image.bounding_box() == mask.bounding_box() == boxes.bounding_box()
        assert boxes.locator("rect").count() == 2
        tab.get_by_label("masks").uncheck()
        assert not mask.is_visible()
        tab.get_by_label("boxes").uncheck()
        assert not boxes.is_visible()
        tab.locator(".card").click()
        assert HOSTILE[:20] in tab.locator("dialog").inner_text()


def test_arrays_are_drawn(chromium: Any, tmp_path: Path) -> None:
    target, data = written(convert(ragged_folder(tmp_path / "src", [0, 5, 700]), tmp_path / "out"))
    assert sorted(item["views"][0]["kind"] for item in data["items"]) == ["lines", "lines", "text"]
    with opened(chromium, target) as tab:
        assert tab.locator(".card svg path").count() == 6
    np.save(tmp_path / "maps.npy", np.random.default_rng(0).normal(size=(6, 40, 30)))
    target, _ = written(convert(tmp_path / "maps.npy", tmp_path / "maps", "hdf5"))
    with opened(chromium, target) as tab:
        assert tab.locator(".card img.map").count() == 6


def test_hostile_names_are_shown_and_do_nothing(chromium: Any, tmp_path: Path) -> None:
    name = HOSTILE.replace("/", "_")
    source = write_files(
        tmp_path / "src", {f"{name}/{name}.png": encoded(picture(8, 8)), "b/x.png": encoded(picture(8, 8))}
    )
    target, data = written(convert(source, tmp_path / "out"))
    with opened(chromium, target) as tab:
        assert tab.locator("h3").first.text_content() in (name, "b")
        assert tab.locator("img[src=x]").count() == 0
        tab.get_by_label("All classes").select_option(name)
        assert tab.locator(".card").count() == 1
    assert name in {c["name"] for c in data["classes"]}


def test_where_a_page_goes(tmp_path: Path) -> None:
    (tmp_path / "real.html").write_text("old")
    (tmp_path / "link.html").symlink_to("real.html")
    write_page(tmp_path / "link.html", "new", {}, ["charts.js"])
    assert (tmp_path / "link.html").is_symlink() and "<title>new" in (tmp_path / "real.html").read_text()
    name = "n" * 250 + ".html"
    write_page(tmp_path / name, "long", {}, ["charts.js"])
    assert sorted(os.listdir(tmp_path)) == ["link.html", name, "real.html"]
    wrong = {"": "a folder", str(tmp_path): "a folder", "/dev/null": "no regular file"}
    for path, said in (wrong | {str(tmp_path / "real.html" / "x"): "there is no folder"}).items():
        with pytest.raises(ResourceError, match=said):
            write_page(path, "x", {}, ["charts.js"])

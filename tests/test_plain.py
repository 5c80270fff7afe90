"""Plain JPEGs decoded many at a call: the pixels that simplejpeg gives, of the part asked for, and no damage delivered."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import simplejpeg
from converting import assert_same_picture, encoded, noise, picture, pillow, saved
from hypothesis import given
from hypothesis import strategies as st

from streamkit import native
from streamkit.codecs import image, plain, turbo
from streamkit.codecs.plain import decode_alike, decode_each
from streamkit.codecs.resize import cut_out
from streamkit.codecs.turbo import Files

WHOLE = (0.0, 0.0, 1.0, 1.0)

in_c_alone = pytest.mark.parametrize("way", ["C"], indirect=True)


@pytest.fixture(params=["C", "Python"], scope="module")
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both ways of decoding, of which the caller must not learn."""
    if request.param == "C" and not turbo.available():
        pytest.skip("no C compiler, or no libjpeg-turbo to be found")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "Python":
            patch.setattr(turbo, "available", lambda: False)
        yield request.param


def jpeg(width: int, height: int, seed: int = 0, subsampling: int = 2, gray: bool = False, **options: Any) -> bytes:
    """Noise under a slope, so that every line and column differs. Subsampling as Pillow counts it: 0 4:4:4, 2 4:2:0."""
    slope = np.linspace(0, 200, width * height * 3).reshape(height, width, 3)
    pixels = (slope + np.random.default_rng(seed).integers(0, 56, (height, width, 3))).astype(np.uint8)
    coloured = PIL.Image.fromarray(pixels)
    return saved(coloured.convert("L") if gray else coloured, "JPEG", quality=80, subsampling=subsampling, **options)


def files(*datas: bytes) -> Files:
    ends = np.cumsum([len(data) for data in datas])
    memory = np.frombuffer(b"".join(datas), np.uint8)
    return Files(memory, ends - [len(data) for data in datas], np.diff(ends, prepend=0), np.ones(len(datas), bool))


def parts(
    datas: list[bytes], least: tuple[int, int] = (0, 0), boxes: Any = None, channels: int = 3, **options: Any
) -> list[np.ndarray | None]:
    """Each picture's part, copied."""
    rest = {"accurate": False, "upper_alone": False, "max_pixels": 1 << 20} | options
    boxes = None if boxes is None else np.array(boxes)
    each = decode_each(files(*datas), np.tile(np.int64(least), (len(datas), 1)), boxes, channels, **rest)
    return [None if pixels is None else pixels.copy() for pixels in each]


SIDES = st.one_of(st.integers(1, 40), st.integers(60, 200))
SHARES = st.tuples(*[st.floats(0, 1)] * 4)


@given(
    width=SIDES,
    height=SIDES,
    shares=st.none() | SHARES,
    least=st.tuples(st.integers(0, 210), st.integers(0, 210)),
    subsampling=st.sampled_from([0, 1, 2]),
    options=st.sampled_from([{}, {"progressive": True}, {"restart_marker_rows": 1}, {"gray": True}]),
    channels=st.sampled_from([1, 3, 4]),
    accurate=st.booleans(),
    upper_alone=st.booleans(),
)
def test_a_part_is_cut_out_of_what_decoding_it_whole_gives(
    way: str,
    width: int,
    height: int,
    shares: tuple[float, ...] | None,
    least: tuple[int, int],
    subsampling: int,
    options: dict[str, Any],
    channels: int,
    accurate: bool,
    upper_alone: bool,
) -> None:
    data = jpeg(width, height, subsampling=subsampling, **options)
    whole = image.decode(
        data, channels=channels, orientation=1, at_least=least if any(least) else None, accurate=accurate
    )
    box = None
    if shares is not None:
        box = [shares[0], shares[1], (1 - shares[0]) * shares[2], (1 - shares[1]) * shares[3]]
        whole = cut_out(whole, box)
    whole = whole.copy()
    boxes = None if box is None else [box]
    (part,) = parts([data], least, boxes, channels, accurate=accurate, upper_alone=upper_alone)
    assert part is not None
    np.testing.assert_array_equal(part, whole)


@pytest.mark.parametrize("n_channels", [1, 3, 4])
def test_many_pictures_come_in_order_and_bad_ones_hold_nobody_up(way: str, n_channels: int) -> None:
    """More than is decoded at a call, some that cannot be, small ones and large ones."""
    sizes = [(8, 9), (300, 280), (1, 1), (64, 64)]
    good = [jpeg(w, h, seed) for seed, (w, h) in zip(range(40), itertools.cycle(sizes), strict=False)]
    datas = []
    for data, bad in zip(
        good, itertools.cycle([b"", b"no JPEG", good[1][:-900], encoded(noise(9, 9), "PNG")]), strict=False
    ):
        datas += [data, bad]
    found = parts(datas, channels=n_channels)
    assert len(found) == 80 and all(pixels is None for pixels in found[1::2])
    for pixels, data in zip(found[::2], good, strict=True):
        np.testing.assert_array_equal(pixels, image.decode(data, channels=n_channels))


def test_pictures_decoded_alike_are_those_decoded_one_by_one(way: str) -> None:
    right = [encoded(noise(16, 24), "JPEG"), encoded(picture(16, 24), "JPEG")]
    others = [encoded(picture(16, 24), "PNG"), encoded(picture(8, 24), "JPEG"), encoded(picture(24, 16), "JPEG")]
    others += [encoded(picture(32, 24), "JPEG"), right[0][:-20], b""]
    datas = [right[0], *others, right[1]]
    out = np.zeros((len(datas), 16, 24, 3), np.uint8)
    assert decode_alike(files(*datas), out) == list(range(1, len(datas) - 1))
    for slot, data in zip(out[[0, -1]], right, strict=True):
        np.testing.assert_array_equal(slot, image.decode(data, channels=3))
        assert_same_picture(slot, pillow(data), "a.jpg")


def test_what_is_not_plain_is_left_alone(way: str) -> None:
    data = files(jpeg(16, 8), jpeg(16, 8))._replace(plain=np.array([False, True]))
    assert decode_alike(data, np.empty((2, 8, 16, 3), np.uint8)) == [0]
    each = decode_each(data, np.zeros((2, 2), np.int64), None, 3, accurate=False, upper_alone=False, max_pixels=200)
    assert [pixels is None for pixels in each] == [True, False]


def test_a_picture_larger_than_allowed_is_not_decoded(way: str) -> None:
    data = jpeg(40, 30)
    assert [pixels is None for pixels in parts([data], max_pixels=1199)] == [True]
    assert [pixels is None for pixels in parts([data], max_pixels=1200)] == [False]
    assert parts([data], boxes=[(0, 0, 0.1, 0.1)], max_pixels=1199) == [None]
    assert [pixels is None for pixels in parts([data], least=(15, 20), max_pixels=1199)] == [False]


@given(
    at=st.integers(0, 3000),
    value=st.integers(0, 255),
    top=st.floats(0, 0.9),
    progressive=st.booleans(),
)
def test_damage_is_told_of_wherever_it_is(way: str, at: int, value: int, top: float, progressive: bool) -> None:
    """A JPEG with one byte changed gives the pixels that simplejpeg gives in strict mode, or nothing, if it gives none."""
    data = bytearray(jpeg(100, 400, seed=1, progressive=progressive))
    data[at] = value
    box = (top, 0.2, 0.1, 0.3)
    (part,) = parts([bytes(data)], boxes=[box])
    try:
        whole = simplejpeg.decode_jpeg(bytes(data), "RGB", True)
    except ValueError:
        whole = None
    if whole is None:
        assert part is None
    else:
        assert part is not None
        np.testing.assert_array_equal(part, cut_out(whole, box))


@given(share=st.floats(0.05, 1))
def test_a_picture_cut_short_is_bad_wherever_the_part_lies(way: str, share: float) -> None:
    data = jpeg(100, 400)
    assert parts([data[: int((len(data) - 2) * share)]], boxes=[(0, 0, 0.1, 1)]) == [None]


@in_c_alone
def test_lines_below_are_not_read_where_nothing_is_wrong_there(way: str) -> None:
    data = jpeg(100, 400)
    cut = data[: len(data) * 3 // 4]
    (part,) = parts([cut], boxes=[(0, 0, 0.5, 1)], upper_alone=True)
    assert part is not None
    np.testing.assert_array_equal(part, image.decode(data, channels=3)[:200])
    assert parts([cut], boxes=[(0.2, 0, 0.8, 1)], upper_alone=True) == [None]


@in_c_alone
@pytest.mark.parametrize("package, pattern", turbo._PACKAGES)
def test_each_library_that_may_be_there_gives_the_same(
    way: str, package: str, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow's speaks version 62 of the interface, imagecodecs' version 80."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    if not list(Path(spec.origin).parent.parent.glob(pattern)):
        pytest.skip(f"{package} was built with a library from elsewhere")
    datas = [jpeg(120, 90, seed, **options) for seed, options in enumerate(({}, {"progressive": True}, {"gray": True}))]
    boxes = [(0.3, 0.3, 0.4, 0.4)] * 3
    expected = parts(datas, (40, 40), boxes)
    monkeypatch.setattr(turbo, "_PACKAGES", ((package, pattern),))
    monkeypatch.setattr(turbo, "_SYSTEM", ())
    found = turbo._turbo.__wrapped__()
    assert found is not None
    monkeypatch.setattr(turbo, "_turbo", lambda: found)
    for part, same in zip(parts(datas, (40, 40), boxes), expected, strict=True):
        np.testing.assert_array_equal(part, same)


@in_c_alone
def test_a_library_of_another_version_or_size_is_not_used(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for versions in ([(61, 632), (90, 656)], [(62, 640), (80, 632)], [(62, 1 << 20)], []):
        monkeypatch.setattr(turbo, "_VERSIONS", versions)
        assert turbo._turbo.__wrapped__() is None
    monkeypatch.undo()
    monkeypatch.setattr(turbo, "_PACKAGES", (("json", "nowhere*"), ("there_is_none", "*")))
    monkeypatch.setattr(turbo, "_SYSTEM", ("libc.so.6", "libnone.so"))
    assert turbo._turbo.__wrapped__() is None
    monkeypatch.setattr(native, "_library", None)
    assert turbo._turbo.__wrapped__() is None


@in_c_alone
def test_other_colours_are_left_alone(way: str) -> None:
    assert parts([saved(PIL.Image.new("CMYK", (16, 8)), "JPEG")]) == [None]


@in_c_alone
def test_files_outside_their_memory_are_refused(way: str) -> None:
    for start, length in ((-1, 10), (0, -1), (5, 100)):
        wrong = Files(np.zeros(50, np.uint8), np.array([start]), np.array([length]), np.ones(1, bool))
        with pytest.raises(ValueError, match="leave the memory"):
            plain.decode_alike(wrong, np.empty((1, 8, 8, 3), np.uint8))

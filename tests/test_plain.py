"""Plain JPEGs decoded many at a call: what simplejpeg and OpenCV give, of the part asked for, and no damage delivered."""

from __future__ import annotations

import importlib.util
import itertools
import math
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import pytest
import simplejpeg
from converting import assert_same_picture, encoded, noise, picture, pillow, saved
from hypothesis import given
from hypothesis import strategies as st

from streamkit import native
from streamkit.codecs import image, turbo
from streamkit.codecs.plain import decode_into, decode_part
from streamkit.codecs.resize import cut_out, resize
from streamkit.codecs.turbo import Files, How

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


def manner(**how: Any) -> How:
    return How(**{"accurate": False, "upper_alone": False, "max_pixels": 1 << 20} | how)


def part(
    data: bytes, least: tuple[int, int] = (0, 0), box: Any = None, channels: int = 3, **how: Any
) -> np.ndarray | None:
    """A picture's part as it comes, copied."""
    box = None if box is None else np.array(box)
    found = decode_part(files(data), 0, np.array(least), box, manner(**how), channels)
    return None if found is None else found.copy()


def slots(
    datas: list[bytes], shape: tuple[int, ...], least: tuple[int, int] = (0, 0), boxes: Any = None, **how: Any
) -> tuple[np.ndarray, list[int]]:
    """Each picture's part in its slot, and the numbers of those that are not done. Nothing is written beside the slots."""
    mirrored = how.pop("mirrored", None)
    memory = np.full(len(datas) * math.prod(shape) + 128, 77, np.uint8)
    out = memory[64:-64].reshape(len(datas), *shape)
    boxes = None if boxes is None else np.array(boxes)
    rest = decode_into(files(*datas), np.tile(least, (len(datas), 1)), boxes, mirrored, manner(**how), out)
    assert (memory[:64] == 77).all() and (memory[-64:] == 77).all()
    return out, rest


def inside(shares: tuple[float, ...]) -> list[float]:
    """A box: top, left, height, width."""
    return [shares[0], shares[1], (1 - shares[0]) * shares[2], (1 - shares[1]) * shares[3]]


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
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    mirrored=st.booleans(),
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
    size: tuple[int, int],
    mirrored: bool,
) -> None:
    data = jpeg(width, height, subsampling=subsampling, **options)
    at_least = least if any(least) else None
    whole = image.decode(data, channels=channels, orientation=1, at_least=at_least, accurate=accurate)
    box = None if shares is None else inside(shares)
    expected = (whole if box is None else cut_out(whole, box)).copy()
    found = part(data, least, box, channels, accurate=accurate, upper_alone=upper_alone)
    np.testing.assert_array_equal(found, expected)
    for height, width in (size, expected.shape[:2]):
        (slot,), rest = slots(
            *([data], (height, width, channels), least, None if box is None else [box]),
            accurate=accurate,
            upper_alone=upper_alone,
            mirrored=np.array([mirrored]),
        )
        resized = resize(expected, (height, width))
        assert rest == []
        np.testing.assert_array_equal(slot, resized[:, ::-1] if mirrored else resized)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_bad_pictures_among_many_hold_nobody_up(way: str, channels: int) -> None:
    sizes = [(8, 9), (300, 280), (1, 1), (64, 64)]
    good = [jpeg(w, h, seed) for seed, (w, h) in zip(range(12), itertools.cycle(sizes), strict=False)]
    bad = [b"", b"no JPEG", good[1][:-900], encoded(noise(9, 9), "PNG")]
    datas = [data for pair in zip(good, itertools.cycle(bad), strict=False) for data in pair]
    out, rest = slots(datas, (20, 30, channels))
    assert rest == list(range(1, 24, 2))
    for pixels, data in zip(out[::2], good, strict=True):
        np.testing.assert_array_equal(pixels, resize(image.decode(data, channels=channels), (20, 30)))


def test_pictures_of_the_size_wanted_are_those_decoded_one_by_one(way: str) -> None:
    right = [encoded(noise(16, 24), "JPEG"), encoded(picture(16, 24), "JPEG")]
    others = [encoded(picture(16, 24), "PNG"), encoded(picture(8, 24), "JPEG"), encoded(picture(24, 16), "JPEG")]
    others += [encoded(picture(32, 24), "JPEG"), right[0][:-20], b""]
    datas = [right[0], *others, right[1]]
    out, rest = slots(datas, (16, 24, 3), resizing=False)
    assert rest == list(range(1, len(datas) - 1))
    for slot, data in zip(out[[0, -1]], right, strict=True):
        np.testing.assert_array_equal(slot, image.decode(data, channels=3))
        assert_same_picture(slot, pillow(data), "a.jpg")


def test_what_is_not_plain_is_left_alone(way: str) -> None:
    data = files(jpeg(16, 8), jpeg(16, 8))._replace(plain=np.array([False, True]))
    least = np.zeros((2, 2), np.int64)
    assert decode_into(data, least, None, None, manner(), np.empty((2, 8, 16, 3), np.uint8)) == [0]
    found = [decode_part(data, i, least[i], None, manner(), 3) for i in range(2)]
    assert [pixels is None for pixels in found] == [True, False]


def test_a_picture_larger_than_allowed_is_not_decoded(way: str) -> None:
    data = jpeg(40, 30)
    for max_pixels, rest in ((1199, [0]), (1200, [])):
        assert slots([data], (8, 8, 3), max_pixels=max_pixels)[1] == rest
        assert (part(data, max_pixels=max_pixels) is None) == bool(rest)
    assert part(data, box=(0, 0, 0.1, 0.1), max_pixels=1199) is None
    assert part(data, least=(15, 20), max_pixels=1199) is not None


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
    found = part(bytes(data), box=box)
    _, rest = slots([bytes(data)], (10, 12, 3), boxes=[box])
    try:
        whole = simplejpeg.decode_jpeg(bytes(data), "RGB", True)
    except ValueError:
        whole = None
    if whole is None:
        assert found is None and rest == [0]
    else:
        assert rest == []
        np.testing.assert_array_equal(found, cut_out(whole, box))


@given(share=st.floats(0.05, 1))
def test_a_picture_cut_short_is_bad_wherever_the_part_lies(way: str, share: float) -> None:
    data = jpeg(100, 400)
    cut, box = data[: int((len(data) - 2) * share)], (0, 0, 0.1, 1)
    assert part(cut, box=box) is None
    assert slots([cut], (9, 9, 3), boxes=[box])[1] == [0]


def segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and bytes of each segment before the first scan, then (0, the rest)."""
    at = 2
    while data[at + 1] != 0xDA:
        n = 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        yield data[at + 1], data[at : at + n]
        at += n
    yield 0, data[at:]


def test_no_picture_is_decoded_with_the_tables_of_another(way: str) -> None:
    """A JPEG without quantization tables is none; one without Huffman tables has the usual ones, or is left to others."""
    plain, optimized = jpeg(60, 50, 1), jpeg(60, 50, 2, optimize=True)
    without = {m: b"\xff\xd8" + b"".join(part for n, part in segments(plain) if n != m) for m in (0xDB, 0xC4)}
    for other in (plain, optimized, jpeg(60, 50, 3, progressive=True)):
        out, rest = slots([other, without[0xDB], other, without[0xC4]], (50, 60, 3))
        assert rest in ([1], [1, 3])
        if 3 not in rest:
            np.testing.assert_array_equal(out[3], image.decode(plain, channels=3))


def test_a_picture_is_measured_before_memory_is_taken_for_it(way: str) -> None:
    """Of one in several scans the decoder keeps all numbers: 6 bytes a pixel."""
    data = bytearray(jpeg(64, 48, progressive=True))
    (frame,) = (part for marker, part in segments(bytes(data)) if marker == 0xC2)
    at = data.index(frame)
    data[at + 5 : at + 9] = (20_000).to_bytes(2, "big") * 2
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert part(bytes(data)) is None
    assert slots([bytes(data)], (9, 9, 3))[1] == [0]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB


def test_tiny_pictures_are_decoded_at_the_same_scale(way: str) -> None:
    rng = np.random.default_rng(0)
    for height, width in itertools.product(range(1, 10), repeat=2):
        data = simplejpeg.encode_jpeg(rng.integers(0, 256, (height, width, 3), np.uint8), 95)
        for least in ((1, 1), (2, 1), (1, 3), (4, 4), (5, 2), (9, 9)):
            expected = image.decode(data, channels=3, orientation=1, at_least=least).copy()
            np.testing.assert_array_equal(part(data, least), expected)


@given(n_scans=st.integers(1, 9), shares=SHARES)
def test_a_part_of_a_picture_whose_last_scans_are_missing(way: str, n_scans: int, shares: tuple[float, ...]) -> None:
    """Its end may stand behind any scan; what is not known of it is guessed, and the same for a part as for all of it."""
    whole = jpeg(150, 120, progressive=True)
    scans = whole.split(b"\xff\xda")
    data = b"\xff\xda".join(scans[: 1 + n_scans]).removesuffix(b"\xff\xd9") + b"\xff\xd9"
    try:
        pixels = simplejpeg.decode_jpeg(data, "RGB", True)
    except ValueError:
        assert part(data, box=inside(shares)) is None
    else:
        np.testing.assert_array_equal(part(data, box=inside(shares)), cut_out(pixels, inside(shares)))


@in_c_alone
@pytest.mark.parametrize("sampling", [(0x12, 0x11, 0x14), (0x22, 0x22, 0x22), (0x31, 0x11, 0x11), (0x11, 0x11, 0x21)])
def test_odd_samplings_are_left_to_others(way: str, sampling: tuple[int, ...]) -> None:
    """With some of them libjpeg-turbo skips lines for ever."""
    data = bytearray(jpeg(100, 90, subsampling=0))
    (frame,) = (part for marker, part in segments(bytes(data)) if marker == 0xC0)
    at = data.index(frame) + 10
    for i, factors in enumerate(sampling):
        data[at + 1 + 3 * i] = factors
    assert slots([bytes(data)], (9, 9, 3), boxes=[(0.1, 0.1, 0.2, 0.2)])[1] == [0]


@in_c_alone
def test_what_does_not_fit_together_is_refused(way: str) -> None:
    one, least = files(jpeg(16, 8)), np.zeros((1, 2), np.int64)
    for out in (
        np.empty((1, 0, 16, 3), np.uint8),
        np.empty((2, 8, 16, 3), np.uint8),
        np.empty((1, 8, 16, 2), np.uint8),
        np.empty((1, 8, 16, 3), np.float32),
        np.empty((1, 8, 32, 3), np.uint8)[:, :, ::2],
    ):
        with pytest.raises(ValueError, match="picture"):
            decode_into(one, least, None, None, manner(), out)
    with pytest.raises(ValueError, match="not as many boxes"):
        decode_into(one, least, np.zeros((2, 4)), None, manner(), np.empty((1, 8, 16, 3), np.uint8))
    marks, out = np.array([True, True, False, True]), np.empty((2, 2, 8, 16, 3), np.uint8)
    two = files(jpeg(16, 8), jpeg(16, 8))
    for mirrored, place in zip((marks[::2], marks[::2].copy()), out, strict=True):
        assert decode_into(two, np.zeros((2, 2), np.int64), None, mirrored, manner(), place) == []
    np.testing.assert_array_equal(*out)
    for value in (np.nan, np.inf, -np.inf, 1e300, -1.0):  # nothing is written beside the slots
        slots([jpeg(16, 8)], (5, 7, 3), boxes=[[value] * 4])


@in_c_alone
def test_lines_below_are_not_read_where_nothing_is_wrong_there(way: str) -> None:
    data = jpeg(100, 400)
    cut = data[: len(data) * 3 // 4]
    upper = part(cut, box=(0, 0, 0.5, 1), upper_alone=True)
    np.testing.assert_array_equal(upper, image.decode(data, channels=3)[:200])
    assert part(cut, box=(0.2, 0, 0.8, 1), upper_alone=True) is None


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
    expected, _ = slots(datas, (40, 50, 3), (40, 40), [(0.3, 0.3, 0.4, 0.4)] * 3)
    monkeypatch.setattr(turbo, "_PACKAGES", ((package, pattern),))
    monkeypatch.setattr(turbo, "_SYSTEM", ())
    other = turbo._turbo.__wrapped__()
    assert other is not None
    monkeypatch.setattr(turbo, "_turbo", lambda: other)
    found, rest = slots(datas, (40, 50, 3), (40, 40), [(0.3, 0.3, 0.4, 0.4)] * 3)
    assert rest == []
    np.testing.assert_array_equal(found, expected)


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
    assert part(saved(PIL.Image.new("CMYK", (16, 8)), "JPEG")) is None


@in_c_alone
def test_files_outside_their_memory_are_refused(way: str) -> None:
    for start, length in ((-1, 10), (0, -1), (5, 100)):
        wrong = Files(np.zeros(50, np.uint8), np.array([start]), np.array([length]), np.ones(1, bool))
        with pytest.raises(ValueError, match="leave the memory"):
            decode_into(wrong, np.zeros((1, 2), np.int64), None, None, manner(), np.empty((1, 8, 8, 3), np.uint8))


@given(
    size=st.tuples(SIDES, SIDES),
    wanted=st.tuples(SIDES, SIDES),
    channels=st.sampled_from([1, 2, 3, 4]),
    left=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_resizing_is_exact_to_the_last_bit(
    size: tuple[int, int], wanted: tuple[int, int], channels: int, left: int, seed: int
) -> None:
    """In C as in OpenCV, of a part of a picture too, and nothing is written beside the place."""
    if not native.available():
        pytest.skip("built without a C compiler")
    whole = np.random.default_rng(seed).integers(0, 256, (size[0], size[1] + left, channels), np.uint8)
    memory = np.full(wanted[0] * wanted[1] * channels + 128, 77, np.uint8)
    out, pixels = memory[64:-64].reshape(*wanted, channels), whole[:, left:]
    assert native.resize(pixels, out)
    expected = cv2.resize(np.ascontiguousarray(pixels), wanted[::-1], interpolation=cv2.INTER_LINEAR_EXACT)
    np.testing.assert_array_equal(out, expected.reshape(out.shape))
    assert (memory[:64] == 77).all() and (memory[-64:] == 77).all()


def test_pixels_that_lie_otherwise_are_resized_by_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    for pixels in (whole[:, ::2], whole[:, ::-1], whole[::-1]):
        found = resize(pixels, (20, 30))
        np.testing.assert_array_equal(found, resize(np.ascontiguousarray(pixels), (20, 30)))
    expected = resize(whole, (20, 30))
    monkeypatch.setattr(native, "_library", None)
    np.testing.assert_array_equal(resize(whole, (20, 30)), expected)

"""Errors: one class per exit code, one line each, and whole after a trip between processes."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkit import errors
from streamkit.errors import StreamkitError, one_line

CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, StreamkitError)]


def test_one_class_per_exit_code() -> None:
    """DESIGN 4: 1 our bug, 2 usage, 3 source, 4 damaged, 5 resources, 6 remote, 7 busy, 8 version, 9 refused."""
    codes = {cls.__name__: cls.exit_code for cls in CLASSES}
    assert codes == {
        "StreamkitError": 1,
        "UsageError": 2,
        "SourceError": 3,
        "DamagedError": 4,
        "ResourceError": 5,
        "RemoteError": 6,
        "BusyError": 7,
        "FormatVersionError": 8,
        "RefusedError": 9,
    }


TEXT = st.text(max_size=20)


@given(
    cls=st.sampled_from(CLASSES),
    what=TEXT,
    path=st.none() | TEXT,
    shard=st.none() | TEXT,
    record=st.none() | st.integers(0, 2**40),
    offset=st.none() | st.integers(0, 2**40),
    key=st.none() | TEXT,
    hint=TEXT,
)
def test_errors_travel_whole_and_print_on_one_line(cls: type[StreamkitError], **facts: object) -> None:
    facts["what"] = facts.pop("what")
    error = cls(facts.pop("what"), **facts)  # type: ignore[arg-type]
    assert str(error).isprintable()
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is cls
    assert str(back) == str(error)
    for name in ("what", "path", "shard", "record", "offset", "key", "hint"):
        assert getattr(back, name) == getattr(error, name)


@given(text=st.text())
def test_one_line_keeps_what_is_printable(text: str) -> None:
    line = one_line(text)
    assert line.isprintable()
    line.encode()
    if text.isprintable():
        assert line == text


def test_the_form_of_a_message() -> None:
    error = errors.DamagedError("crc32c is 1", shard="t-00000.h5", record=4, offset=9, key="a\n.jpg", hint="Do this.")
    assert str(error) == "t-00000.h5 record 4 at byte 9 (a\\n.jpg): crc32c is 1. Do this."
    assert str(errors.UsageError("wrong", path="out")) == "out: wrong"
    assert str(errors.SourceError("bad", key="x")) == "x: bad"


def test_usage_errors_are_value_errors() -> None:
    with pytest.raises(ValueError, match="wrong"):
        raise errors.UsageError("wrong")

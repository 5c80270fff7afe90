"""Every numbered fault case has a test that names it with `@pytest.mark.fault(...)`, but for those listed here."""

from __future__ import annotations

import faults

OPEN = {
    63,  # no name server, no network
    69,  # the cache's disk is full
}


def test_every_case_is_named() -> None:
    named = faults.named_cases()
    assert set(named) - faults.CASES == set()
    assert faults.CASES - set(named) <= OPEN
    assert not OPEN & set(named), "now it has a test: take it out of the list"
    assert {*range(1, 63), *range(81, 91)} <= set(named)

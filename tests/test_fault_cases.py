"""Every numbered fault case has a test that names it with `@pytest.mark.fault(...)`, but for those listed here."""

from __future__ import annotations

import faults

REMOTE = set(range(53, 72))  # datasets that are read from servers, and their cache
OPEN = {
    74,  # a Keras worker process that is killed
    80,  # a /dev/shm of 1 MiB
}


def test_every_case_is_named() -> None:
    named = faults.named_cases()
    assert set(named) - faults.CASES == set()
    assert faults.CASES - set(named) <= REMOTE | OPEN
    assert not OPEN & set(named), "now it has a test: take it out of the list"
    assert {*range(41, 53), *range(81, 91)} <= set(named)

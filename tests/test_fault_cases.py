"""Every numbered fault case has a test that names it with `@pytest.mark.fault(...)`."""

from __future__ import annotations

import faults


def test_every_case_is_named() -> None:
    named = faults.named_cases()
    assert set(named) == faults.CASES

"""What coverage-guided fuzzing found, as plain tests: each input takes its own way through a parser. See scripts/fuzz.py."""

from __future__ import annotations

import fuzzing
import pytest
from test_faults import SEEDS, at_once


@pytest.mark.fault(89)
@pytest.mark.parametrize("target", fuzzing.TARGETS)
def test_the_corpus_raises_nothing_of_its_own_and_takes_no_time(target: str) -> None:
    inputs = [*fuzzing.seeds(target), *fuzzing.found(target)]
    assert len(inputs) > 1
    for data in inputs[:: 1 if SEEDS >= 300 else max(1, len(inputs) // 80)]:
        with at_once(5):
            fuzzing.TARGETS[target](data)

"""What is searched: one task's trials are not another's, and the training that follows prunes as the best trial did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamkit.training.searching import Choice, search


def test_the_schedule_of_a_choice_is_that_of_its_trial() -> None:
    assert Choice(1e-3, 1.0, sparsity=0.0).prune(600) is None
    schedule = Choice(1e-3, 1.0, sparsity=0.8).prune(600).schedule
    assert (schedule.final, schedule.begin, schedule.end, schedule.every) == (0.8, 100, 400, 15)
    schedule = Choice(1e-3, 1.0, sparsity=0.5, begin=0.2, end=0.5).prune(10).schedule
    assert (schedule.final, schedule.begin, schedule.end, schedule.every) == (0.5, 2, 5, 1)


@pytest.mark.slow
def test_trials_of_another_task_are_not_taken_over(tmp_path: Path) -> None:
    pytest.importorskip("keras_tuner")
    import keras

    x, y = np.zeros((8, 2), np.float32), np.zeros(8, np.int32)
    n_fits = 0

    class Counted(keras.Sequential):
        def fit(self, *args: Any, **options: Any) -> Any:
            nonlocal n_fits
            n_fits += 1
            assert options["class_weight"] == {0: 2.0}
            return super().fit(*args, **options)

    def build(choice: Choice) -> Any:
        model = Counted([keras.Input((2,)), keras.layers.Dense(2)])
        model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    def trained(**facts: Any) -> int:
        before = n_fits
        options = {"epochs": 1, "price": facts.pop("price", 0.01), "fit": {"class_weight": {0: 2.0}}}
        search(build, *[Pair(x, y)] * 2, 1, tmp_path, facts=facts, **options)
        return n_fits - before

    class Pair(keras.utils.PyDataset):
        def __init__(self, *pair: Any) -> None:
            super().__init__()
            self.pair = pair

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> Any:
            return self.pair

    n = trained(dataset="a")
    assert n > 0
    assert trained(dataset="a") == 0
    assert trained(dataset="b") > 0
    assert trained(dataset="a", price=0.05) > 0

"""What the training techniques promise, on the sample images: a network trained once, then made smaller in each way."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import streamkit
from streamkit.training import estimate, fit
from streamkit.training.comparing import compare, compare_model
from streamkit.training.factoring import low_rank, separable
from streamkit.training.forms import Forms
from streamkit.training.pruning import (
    PolynomialDecay,
    Prune,
    kernels,
    prune,
    sparsity,
)
from streamkit.training.quantizing import int8, stored_nbytes, tflite, tflite_call
from streamkit.training.rematerializing import Remat
from streamkit.training.searching import Choice, score, search
from streamkit.training.shrinking import shrink

BATCH = 64
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Loaders of train and val: uint8 (10, 10, 3) pictures and which of four shapes they show."""
    out = tmp_path_factory.mktemp("shapes") / "out"
    streamkit.convert(ROOT / "sample_data" / "images", out, format="hdf5", encode="raw", workers=1)
    # A third as high and wide, so each pixel is the mean of what it covers: what learns from aliases differs by the seed.
    options: dict[str, Any] = {"image_size": (10, 10), "interpolation": "area", "dtype": "uint8", "num_workers": 1}
    # One batch size everywhere, so that each step is traced once.
    train = streamkit.Loader(out, split="train", batch_size=BATCH, drop_remainder=True, **options)
    return train, streamkit.Loader(out, split="val", batch_size=240, shuffle=False, **options)


def compiled(model: Any, accumulate: int | None = None, rate: float = 3e-3, **options: Any) -> Any:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.Adam(rate, gradient_accumulation_steps=accumulate, weight_decay=1e-3)
    model.compile(optimizer, loss, metrics=["accuracy"], **options)
    return model


def network() -> Any:
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((10, 10, 3)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(24, 3, padding="same", use_bias=False),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(),
            layers.Conv2D(48, 3, strides=2, padding="same", use_bias=False),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10),
        ]
    )


def accuracy(model: Any, val: Any) -> float:
    x, y = val[0]
    return float((np.argmax(model.predict_on_batch(x), 1) == y).mean())


@pytest.fixture(scope="module")
def dense(shapes: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The trained network and its accuracy."""
    keras.utils.set_random_seed(0)
    model = compiled(network())
    fit(model, shapes[0], epochs=20, run_dir=tmp_path_factory.mktemp("dense"), verbose=0)
    found = accuracy(model, shapes[1])
    assert found >= 0.97
    return model, found


def copy_of(model: Any) -> Any:
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    return twin


# Accumulation


def test_accumulated_gradients_equal_those_of_the_large_batch() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 8)).astype(np.float32), rng.integers(0, 3, 64)
    weights = []
    for batch_size, steps in ((32, None), (8, 4)):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, activation="tanh"), keras.layers.Dense(3)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9, gradient_accumulation_steps=steps), loss)
        model.fit(x, y, batch_size=batch_size, epochs=3, shuffle=False, verbose=0)
        weights.append(np.concatenate([w.ravel() for w in model.get_weights()]))
    assert np.abs(weights[0] - weights[1]).max() <= 1e-6


# Pruning (its rules: test_pruning.py)


@pytest.mark.slow
def test_pruning_on_a_schedule_keeps_what_pruning_at_once_loses(
    shapes: tuple[Any, Any], dense: tuple[Any, float], tmp_path: Path
) -> None:
    train, val = shapes
    model, before = dense
    at_once = copy_of(model)
    prune(at_once, 0.9)
    assert sparsity(at_once) == pytest.approx(0.9, abs=1e-4)
    assert accuracy(at_once, val) < before - 0.1
    gradual = compiled(copy_of(model))
    schedule = PolynomialDecay(0.9, end=4 * len(train), every=4)
    fit(gradual, train, epochs=8, run_dir=tmp_path, verbose=0, callbacks=[Prune(schedule, scope="global")])
    assert sparsity(gradual) == pytest.approx(0.9, abs=1e-4)
    assert accuracy(gradual, val) >= before - 0.02
    shares = [float((keras.ops.convert_to_numpy(v) == 0).mean()) for v in kernels(gradual)]
    assert max(shares) - min(shares) > 0.1  # layers differ in what they can do without


def test_shrinking_takes_out_what_is_empty_and_nothing_else(shapes: tuple[Any, Any], dense: tuple[Any, float]) -> None:
    model = copy_of(dense[0])
    prune(model, 0.5, unit="filter")
    small = shrink(model)
    assert [layer.kernel.shape[-1] for layer in small.layers if hasattr(layer, "kernel")] == [12, 24, 32, 10]
    x, _ = shapes[1][0]
    np.testing.assert_allclose(small.predict_on_batch(x), model.predict_on_batch(x), rtol=1e-4, atol=1e-4)
    whole = shrink(dense[0])
    assert whole.count_params() == dense[0].count_params()
    shifted = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Activation("sigmoid")])
    shifted.add(keras.layers.Dense(2))
    prune(shifted, 0.5, unit="filter")
    with pytest.raises(streamkit.UsageError, match=r"Activation.* may make other numbers of zeros"):
        shrink(shifted)
    functional = keras.Model(inputs := keras.Input((4,)), keras.layers.Dense(2)(inputs))
    with pytest.raises(streamkit.UsageError, match="expected a Sequential"):
        shrink(functional)


# Smaller layers


@pytest.mark.parametrize("smaller", [lambda m: low_rank(m, energy=0.9), lambda m: separable(m, depth_multiplier=4)])
def test_factored_layers_are_as_good_after_two_epochs(
    shapes: tuple[Any, Any], dense: tuple[Any, float], tmp_path: Path, smaller: Any
) -> None:
    train, val = shapes
    model, before = dense
    small = compiled(smaller(model), rate=1e-3)
    assert small.count_params() < 0.95 * model.count_params()
    fit(small, train, epochs=2, run_dir=tmp_path / "run", verbose=0)
    assert accuracy(small, val) >= before - 0.02
    small.save(tmp_path / "small.keras")
    assert accuracy(keras.models.load_model(tmp_path / "small.keras"), val) == accuracy(small, val)


@pytest.mark.parametrize("padding, strides", [("same", 1), ("valid", 2)])
def test_factoring_at_full_rank_changes_nothing(padding: str, strides: int) -> None:
    """Layers whose kernels are of rank 2, so that two of them lose nothing."""
    rng = np.random.default_rng(0)
    convolution = keras.layers.Conv2D(12, 3, strides=strides, padding=padding, activation="relu")
    model = keras.Sequential([keras.Input((9, 7, 4)), convolution, keras.layers.Flatten(), keras.layers.Dense(20)])
    layers = [layer for layer in model.layers if layer.get_weights()]
    for layer in layers:
        kernel, bias = layer.get_weights()
        thin = rng.normal(size=(kernel.size // kernel.shape[-1], 2)) @ rng.normal(size=(2, kernel.shape[-1]))
        layer.set_weights([thin.reshape(kernel.shape), bias + 0.1])
    x = rng.normal(size=(3, 9, 7, 4)).astype(np.float32)
    for small in (low_rank(model, energy=1.0), low_rank(model, rank=2)):
        assert small.count_params() < model.count_params() / 2
        np.testing.assert_allclose(small.predict_on_batch(x), model.predict_on_batch(x), rtol=1e-3, atol=1e-3)
    spatial, mixing = rng.normal(size=(3, 3, 4, 1)), rng.normal(size=(1, 1, 4, 12))
    layers[0].set_weights([spatial * mixing[0], layers[0].get_weights()[1]])
    apart = separable(model)
    assert type(apart.layers[0]) is keras.layers.SeparableConv2D
    np.testing.assert_allclose(apart.predict_on_batch(x), model.predict_on_batch(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("smaller", [lambda m: low_rank(m, rank=1), lambda m: separable(m)])
def test_factoring_reaches_layers_in_stretches_and_in_models_within(smaller: Any, tmp_path: Path) -> None:
    """A stretch that is computed again, and a model as a layer, become as small as the same layers in a row."""

    def parts() -> list[Any]:
        convolutions = [layers.Conv2D(n, 3, padding="same", activation="relu") for n in (32, 48)]
        return [convolutions[0], layers.GroupNormalization(8), convolutions[1]]

    layers = keras.layers
    inputs, ends = keras.Input((8, 8, 16)), (layers.GlobalAveragePooling2D, lambda: layers.Dense(4))
    row, stretch = parts(), parts()
    counts = []
    for middle in (row, [Remat(stretch)], [keras.Sequential([inputs, *parts()])]):
        model = keras.Sequential([inputs, *middle, *(end() for end in ends)])
        small = smaller(model)
        counts.append((model.count_params(), small.count_params()))
        small.save(tmp_path / "small.keras")
        again = keras.models.load_model(tmp_path / "small.keras")
        x = np.random.default_rng(0).normal(size=(2, 8, 8, 16)).astype(np.float32)
        np.testing.assert_array_equal(*(keras.ops.convert_to_numpy(each(x)) for each in (again, small)))
    assert len(set(counts)) == 1 and counts[0][1] < counts[0][0] / 3


def test_factors_keep_what_is_said_of_a_layer() -> None:
    layers = keras.layers
    options: dict[str, Any] = {"kernel_regularizer": keras.regularizers.L2(0.1), "bias_constraint": "non_neg"}
    first = layers.Conv2D(16, 3, trainable=False, **options)
    held = layers.Dense(32, kernel_constraint="max_norm")
    model = keras.Sequential([keras.Input((8, 8, 8)), first, layers.Flatten(), layers.Dense(24, **options), held])
    for small in (low_rank(model, rank=1), separable(model)):
        assert [layer.trainable for layer in small.layers] == [False, True, True, True]
        assert small.layers[0].count_params() < first.count_params()
        assert type(small.layers[3]) is layers.Dense and small.layers[3].count_params() == held.count_params()
        small.layers[0].trainable = True
        factored = {v.path for layer in small.layers[:3] for v in layer.trainable_variables if "kernel" in v.name}
        assert len(small.losses) == len(factored)
    flat = low_rank(model, rank=1).layers[2].layers[1]
    assert isinstance(flat.bias_constraint, keras.constraints.NonNeg)


# What the rows tell


def test_a_model_that_does_not_get_smaller_has_no_low_rank_form(capsys: pytest.CaptureFixture[str]) -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    tuned: list[Any] = []
    batches = [(np.zeros((2, 4), "float32"), np.zeros(2, int))]
    rows = Forms(batches, energy=0.999, fine_tune=tuned.append, quantize="int8").rows(model)
    assert [row.name for row in rows] == ["trained", "int8 (Keras)"] and not tuned
    assert "low rank 0.999: no layer would become smaller" in capsys.readouterr().err


def test_a_row_is_timed_on_one_shape_that_has_been_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first batch of a shape takes long here, as where it is compiled, and one batch is enough."""
    monkeypatch.setattr("streamkit.training.comparing._TIMED_S", 0.1)
    seen: set[int] = set()

    def predict(x: Any) -> Any:
        time.sleep(0.02 if len(x) in seen else 0.3)
        seen.add(len(x))
        return np.eye(3)[x]

    x, y = np.array([0, 1, 2, 1]), np.array([0, 1, 2, 0])
    for batches in ([(x, y)], [(x, y), (x[:1], y[:1])]):
        seen.clear()
        row = compare("x", predict, batches, 3, b"")
        assert 4 / 0.04 < row.images_per_second <= 4 / 0.02
        assert row.accuracy == pytest.approx(sum((a == b).sum() for a, b in batches) / sum(len(a) for a, _ in batches))
    with pytest.raises(streamkit.UsageError, match="no batch"):
        compare("x", predict, [], 3, b"")


def test_a_row_counts_zeros_among_all_numbers_of_a_model() -> None:
    """Embeddings are not pruned, so that 80 % of the kernels are less of the model."""
    model = keras.Sequential([keras.Input((4,), dtype="int32"), keras.layers.Embedding(30, 8), keras.layers.Flatten()])
    model.add(keras.layers.Dense(10, bias_initializer="ones"))
    prune(model, 0.8)
    row = compare_model("pruned", model, [(np.ones((2, 4), np.int32), np.zeros(2))])
    assert row.parameters == 30 * 8 + 32 * 10 + 10
    assert row.zeros == round(0.8 * 320) / row.parameters
    assert "570 parameters, 44.9% zeros, 2,280 B," in str(row)


# Eight bits


def test_int8_says_what_it_leaves_and_keeps_the_accuracy(shapes: tuple[Any, Any], dense: Any, tmp_path: Path) -> None:
    model, before = dense
    small, left = int8(model)
    assert left == tuple(layer.name for layer in model.layers if isinstance(layer, keras.layers.Conv2D))
    assert stored_nbytes(small) < stored_nbytes(model) / 2
    row = compare_model("int8", small, [shapes[1][0]])
    assert row.accuracy >= before - 0.01 and row.deflated_nbytes < row.nbytes == stored_nbytes(small)
    small.save(tmp_path / "small.keras")
    assert accuracy(keras.models.load_model(tmp_path / "small.keras"), shapes[1]) == row.accuracy


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tflite_makes_everything_int8(shapes: tuple[Any, Any], dense: Any) -> None:
    if keras.backend.backend() != "tensorflow":
        with pytest.raises(streamkit.UsageError, match="through TensorFlow"):
            tflite(dense[0], [])
        return
    train, val = shapes
    model, before = dense
    content = tflite(model, [train[i][0] for i in range(3)])
    row = compare("TFLite", tflite_call(content), [val[0]], model.count_params(), content)
    assert row.accuracy >= before - 0.01
    assert row.nbytes < stored_nbytes(model) / 3


# Search


@pytest.mark.slow
def test_a_search_prices_size_and_goes_on_where_it_was(shapes: tuple[Any, Any], tmp_path: Path) -> None:
    pytest.importorskip("keras_tuner")
    train, val = shapes
    built: list[Choice] = []

    def build(choice: Choice) -> Any:
        built.append(choice)
        n = int(32 * choice.width)
        layers = [keras.layers.Flatten(), keras.layers.Dense(n, activation="relu"), keras.layers.Dense(10)]
        return compiled(keras.Sequential([keras.Input((10, 10, 3)), *layers]), rate=choice.rate)

    def run() -> tuple[Choice, list[dict[str, Any]]]:
        return search(build, train.as_keras(), val.as_keras(), len(train), tmp_path, epochs=3, price=0.05)

    best, trials = run()
    scores = [trial["score"] for trial in trials]
    assert scores == sorted(scores, reverse=True) and len(trials) >= 3
    assert all(t["score"] == pytest.approx(score(t["val_accuracy"], 1e6 * t["kept_mb"], 0.05)) for t in trials)
    assert best.rate == trials[0]["rate"] and best.sparsity == trials[0]["sparsity"]
    n_built = len(built)
    assert run() == (best, trials)
    assert len(built) - n_built < 3  # Keras Tuner builds one to learn the space; none is trained again


def test_an_estimate_counts_what_a_step_keeps() -> None:
    model = network()
    with pytest.raises(streamkit.UsageError, match="shapes"):
        estimate(compiled(keras.Sequential([keras.layers.Dense(2)])), 8)
    with pytest.raises(streamkit.UsageError, match=r"is not compiled.* Call model\.compile"):
        estimate(network(), 8)
    compiled(model)
    for size, expected in ((0, "at least 1"), (-1, "at least 1"), ("16", "a whole number"), (None, "at least 1")):
        with pytest.raises(streamkit.UsageError, match=f"batch_size is .*, expected {expected}"):
            estimate(model, size)
    one, four = estimate(model, 16), estimate(model, 64)
    assert four.activations_nbytes == 4 * one.activations_nbytes
    assert four.total_nbytes - one.total_nbytes == 3 * one.activations_nbytes
    n_trainable = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    assert one.gradients_nbytes == 4 * n_trainable
    accumulated = estimate(compiled(network(), accumulate=2), 16)
    assert accumulated.gradients_nbytes == 8 * n_trainable
    assert accumulated.total_nbytes == one.total_nbytes + 4 * n_trainable

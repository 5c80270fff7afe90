"""One line is replaced, and a program runs on as before: Keras' folder reader, an h5py Sequence, a PyTorch Dataset."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from converting import FORMATS, encoded, picture, write_files
from reading import convert

import streamkit
from streamkit.cli import main
from streamkit.errors import UsageError
from streamkit.loader import Loader

N, SIDE = 21, 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """21 pictures of one size, JPEG and PNG, in the classes ant and bee."""
    files = {}
    for i in range(N):
        jpeg = i % 3 > 0
        data = encoded(picture(SIDE, SIDE, seed=i), "JPEG" if jpeg else "PNG", **({"quality": 95} if jpeg else {}))
        files[f"{('ant', 'bee')[i % 2]}/{i:02}.{'jpg' if jpeg else 'png'}"] = data
    return write_files(tmp_path_factory.mktemp("folder"), files)


@pytest.fixture(scope="module")
def converted(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(folder, tmp_path_factory.mktemp("converted") / "out")


# keras.utils.image_dataset_from_directory -> streamkit.dataset


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("imagesize", "Did you mean 'image_size'?"),
        ("image_sizes", "Did you mean 'image_size'?"),
        ("validation_split", 'split="train[:80%]"'),
        ("subset", "--split train=0.8,val=0.2"),
        ("labels", "label_mode=None"),
        ("zzz", "See help(streamkit.Loader)"),
    ],
)
def test_arguments_that_do_not_exist(converted: Path, name: str, said: str) -> None:
    weights: Any = {converted: 1}
    for make in (streamkit.Loader, streamkit.dataset, streamkit.sequence):
        with pytest.raises(UsageError) as caught:
            make(converted, **{name: 1})
        assert isinstance(caught.value, TypeError) and repr(name) in str(caught.value) and said in str(caught.value)
    with pytest.raises(TypeError, match=f"there is no argument '{name}'"):
        streamkit.mix(weights, **{name: 1})


def test_every_argument_of_keras_exists_or_is_explained(converted: Path) -> None:
    keras = pytest.importorskip("keras")
    ours = inspect.signature(Loader).parameters
    for name in inspect.signature(keras.utils.image_dataset_from_directory).parameters:
        if name not in {*ours, "format"}:  # of the batches; new in Keras, and not in all that are supported
            with pytest.raises(UsageError) as caught:
                streamkit.dataset(converted, **{name: None})
            assert "help(" not in str(caught.value), name


SHARED = (
    "label_mode",
    "color_mode",
    "batch_size",
    "image_size",
    "shuffle",
    "seed",
    "interpolation",
    "crop_to_aspect_ratio",
)


def test_the_arguments_that_both_have_have_one_name() -> None:
    keras = pytest.importorskip("keras")
    theirs = inspect.signature(keras.utils.image_dataset_from_directory).parameters
    ours = inspect.signature(Loader).parameters
    assert set(SHARED) == set(theirs) & set(ours)
    for name in set(SHARED) - {"image_size", "seed"}:  # ours keeps the stored size, and is always reproducible
        assert ours[name].default == theirs[name].default, name


ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"label_mode": "categorical", "batch_size": 4},
    {"label_mode": "binary", "color_mode": "grayscale"},
    {"label_mode": None, "color_mode": "rgba"},
    {"batch_size": None, "seed": None},
    {"image_size": (16, 20), "crop_to_aspect_ratio": True, "interpolation": "bicubic", "shuffle": False},
]


def rows(dataset: Any, batched: bool) -> list[tuple[bytes, ...]]:
    """Every sample's bytes, sorted: the two orders are different."""
    found: list[tuple[bytes, ...]] = []
    for element in dataset:
        parts = [np.asarray(part) for part in (element if isinstance(element, tuple) else (element,))]
        stacked = parts if batched else [part[None] for part in parts]
        found += [tuple(part[i].tobytes() for part in stacked) for i in range(len(stacked[0]))]
    return sorted(found)


@pytest.mark.parametrize("more", ARGUMENTS, ids=str)
def test_image_dataset_from_directory(folder: Path, converted: Path, more: dict[str, Any]) -> None:
    keras = pytest.importorskip("keras")
    arguments = {"image_size": (SIDE, SIDE), "seed": 3, **more}
    theirs = keras.utils.image_dataset_from_directory(str(folder), verbose=False, **arguments)
    ours = streamkit.dataset(converted, **arguments)
    assert ours.class_names == ["ant", "bee"]
    assert theirs.class_names == (ours.class_names if arguments.get("label_mode", "int") is not None else None)
    assert ours.element_spec == theirs.element_spec
    assert int(ours.cardinality()) == int(theirs.cardinality())
    if arguments["image_size"] == (SIDE, SIDE) and "color_mode" not in more:
        batched = arguments.get("batch_size", 32) is not None
        assert rows(ours, batched) == rows(theirs, batched)  # to the bit: nothing is resized


def test_keras_trains_on_it_unchanged(converted: Path) -> None:
    keras = pytest.importorskip("keras")
    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(2)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    data = streamkit.dataset(converted, image_size=(SIDE, SIDE), batch_size=8)
    history = model.fit(data.map(lambda x, y: (x / 255, y)), epochs=2, shuffle=False, verbose=0)
    assert len(history.history["loss"]) == 2


@pytest.mark.parametrize("call", [streamkit.dataset, streamkit.sequence, streamkit.Loader, streamkit.open])
def test_a_raw_folder_names_the_two_commands_that_help(folder: Path, call: Any) -> None:
    with pytest.raises(UsageError) as caught:
        call(folder)
    text = str(caught.value)
    assert f"`streamkit convert {folder} OUT --format tfrecord`" in text
    assert f"`streamkit index {folder} --out OUT`" in text


def test_the_command_that_is_named_can_be_pasted(folder: Path, tmp_path: Path) -> None:
    spaced = tmp_path / "my photos"
    spaced.symlink_to(folder)
    with pytest.raises(UsageError, match=f"convert '{spaced}' OUT --format tfrecord"):
        streamkit.open(spaced)
    assert main(["convert", str(spaced), str(tmp_path / "out"), "--format", "tfrecord", "--quiet"]) == 0
    assert streamkit.open(tmp_path / "out").splits["train"].samples == N


# A Sequence over h5py -> streamkit.sequence


@pytest.mark.parametrize("format", FORMATS)
def test_an_h5py_sequence(tmp_path: Path, format: str) -> None:
    keras = pytest.importorskip("keras")
    rng = np.random.default_rng(0)
    path = tmp_path / "data.h5"
    with h5py.File(path, "w") as file:
        file["x"] = rng.normal(size=(50, 8)).astype(np.float32)
        file["y"] = rng.integers(0, 3, 50).astype(np.int32)

    class FromFile(keras.utils.PyDataset):
        def __init__(self, path: Path, batch_size: int) -> None:
            super().__init__()
            with h5py.File(path) as file:
                self.x, self.y = file["x"][:], file["y"][:]
            self.batch_size = batch_size

        def __len__(self) -> int:
            return -(-len(self.x) // self.batch_size)

        def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
            part = slice(i * self.batch_size, (i + 1) * self.batch_size)
            return self.x[part], self.y[part]

    theirs = FromFile(path, 16)
    ours = streamkit.sequence(convert(path, tmp_path / "out", format), batch_size=16, shuffle=False)
    assert isinstance(ours, keras.utils.PyDataset)
    assert len(ours) == len(theirs)
    pairs = [(ours[i], theirs[i]) for i in range(len(ours))]
    for mine, yours in pairs:
        assert [(part.shape, part.dtype) for part in mine] == [(part.shape, part.dtype) for part in yours]
    assert rows([mine for mine, _ in pairs], True) == rows([yours for _, yours in pairs], True)
    model = keras.Sequential([keras.layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(ours, shuffle=False, verbose=0)


# A Dataset of one's own in a DataLoader -> Loader.as_torch


def test_a_torch_dataset(folder: Path, converted: Path) -> None:
    torch = pytest.importorskip("torch")
    import PIL.Image

    class FromFolder(torch.utils.data.Dataset):
        def __init__(self) -> None:
            self.paths = sorted(folder.rglob("*.png"))

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, i: int) -> tuple[Any, int]:
            with PIL.Image.open(self.paths[i]) as image:
                pixels = torch.from_numpy(np.array(image.convert("RGB")))
            return pixels, ("ant", "bee").index(self.paths[i].parent.name)

    theirs = torch.utils.data.DataLoader(FromFolder(), batch_size=4)
    keys = streamkit.open(converted).index("train").column("key").to_pylist()
    pngs = [i for i, key in enumerate(keys) if key.endswith(".png")]
    loader = streamkit.Loader(converted, batch_size=4, dtype="uint8", rows=pngs)
    ours = loader.as_torch(num_workers=0)
    assert isinstance(ours, torch.utils.data.DataLoader)
    assert len(ours) == len(theirs)
    first, their_first = next(iter(ours)), next(iter(theirs))
    assert first[0].shape == their_first[0].shape == (4, SIDE, SIDE, 3)
    assert first[0].dtype == their_first[0].dtype
    images = [{x.numpy().tobytes() for batch, _ in data for x in batch} for data in (ours, theirs)]
    assert images[0] == images[1]


# Dict batches, as KerasHub and KerasCV take them


def test_dict_batches_feed_a_model_with_named_inputs(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "two.npz", left=rng.normal(size=(20, 3)), right=rng.normal(size=(20, 2)), y=np.arange(20) % 2)
    out = convert(tmp_path / "two.npz", tmp_path / "out")
    data = streamkit.dataset(out, batch_size=5)
    assert set(data.element_spec) == {"left", "right", "label"}
    left, right = keras.Input((3,), name="left"), keras.Input((2,), name="right")
    score = keras.layers.Dense(2)(keras.layers.concatenate([left, right]))
    model = keras.Model({"left": left, "right": right}, score)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(data.map(lambda d: ({"left": d["left"], "right": d["right"]}, d["label"])), shuffle=False, verbose=0)
    images = streamkit.dataset(out, batch_size=5, fields=("left", "label")).map(lambda x, y: {"images": x, "labels": y})
    assert next(iter(images))["images"].shape == (5, 3)

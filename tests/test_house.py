"""The house of DESIGN 5 stands: imports point downwards, importing is cheap, and everything public is explained."""

from __future__ import annotations

import argparse
import ast
import inspect
import shlex
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from converting import ROOT, class_folders, python

import streamkit
from streamkit.cli import parser

PACKAGE = ROOT / "streamkit"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Room -> floor, as in DESIGN 5. A room may use every lower floor and itself, never another room of its own floor.
FLOORS = {
    "version": 0,
    "digest": 0,
    "errors": 0,
    "forking": 0,
    "native": 0,
    "atomic": 1,
    "guard": 1,
    "strict": 1,
    "units": 1,
    "remote": 1,
    "schema": 1,
    "manifest": 2,
    "index": 2,
    "order": 2,
    "storage": 2,
    "codecs": 2,
    "terminal": 2,
    "opening": 3,
    "rooted": 3,
    "sources": 3,
    "shards": 3,
    "reader": 4,
    "convert": 5,
    "loader": 5,
    "frontends": 6,
    "health": 6,
    "adopt": 6,
    "training": 7,
    "reports": 7,
    "cli": 8,
    "__main__": 9,
}
# Modules at the top that are parts of a room.
ROOMS = (
    dict.fromkeys(
        (
            *(
                "ahead",
                "arguments",
                "augment",
                "batch",
                "buffers",
                "choose",
                "epochs",
                "mixing",
                "ordered",
                "payloads",
                "parted",
                "pictures",
                "replicas",
            ),
            *("ledger", "shuffling", "sizing", "skipping", "split_stream", "stream", "view"),
        ),
        "loader",
    )
    | {
        "bijection": "order",
        "lengths": "order",
        "shares": "order",
        "splits": "manifest",
        "tables": "index",
        "commands": "cli",
    }
    | dict.fromkeys(
        ("blocks", "cached", "chunks", "far", "kept", "loose", "mapped", "places", "readplan", "stretches"), "reader"
    )
)


def room_of(module: str) -> str:
    """Room of "streamkit.codecs.image": codecs."""
    top = module.split(".")[1]
    return ROOMS.get(top, top)


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node, those inside functions too, but nothing that only a type checker sees."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield other
                yield from nodes(other)
            continue
        yield child
        yield from nodes(child)


def imports(path: Path) -> Iterator[str]:
    """Modules of streamkit that a file imports, wherever in it."""
    for node in nodes(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            if node.module == "streamkit":
                yield from (f"streamkit.{alias.name}" for alias in node.names)
            elif node.module is not None and node.module.startswith("streamkit."):
                yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "streamkit")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_downwards(path: Path) -> None:
    if path == PACKAGE / "__init__.py":
        assert list(imports(path)) == ["streamkit.version"]  # the rest comes in when it is asked for
        return
    here = room_of(name_of(path))
    assert here in FLOORS, f"give {here} a floor"
    for module in imports(path):
        assert module != "streamkit", f"{name_of(path)} imports the whole package"
        there = room_of(module)
        assert there in FLOORS, f"give {there} a floor"
        assert there == here or FLOORS[there] < FLOORS[here], f"{name_of(path)} must not import {module}"


def test_the_walk_sees_what_it_should(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text(
        "import os\nfrom streamkit.errors import X\nif TYPE_CHECKING:\n    from streamkit.cli import main\n"
        "else:\n    import streamkit.schema\ndef f():\n    def g():\n        from streamkit import index\n"
    )
    assert list(imports(tmp_path / "x.py")) == ["streamkit.errors", "streamkit.schema", "streamkit.index"]


FRAMEWORKS = {"tensorflow", "keras", "torch", "jax", "h5py", "cv2", "pyarrow", "numpy", "PIL", "pandas", "imagecodecs"}


def modules_after(script: str, *args: object) -> set[str]:
    """Top-level modules that a fresh process has imported after a script."""
    run = python(f"import sys\n{script}\nprint(*{{name.split('.')[0] for name in sys.modules}})", *args)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.splitlines()[-1].split())


def test_importing_streamkit_imports_nothing_heavy() -> None:
    found = modules_after("import streamkit; dir(streamkit); streamkit.__version__")
    assert "streamkit" in found
    assert not found & FRAMEWORKS


def test_the_command_line_s_help_imports_nothing_heavy() -> None:
    found = modules_after("from streamkit.cli import parser; parser().format_help()")
    assert not found & FRAMEWORKS


@pytest.mark.parametrize("format", ["tfrecord", "hdf5"])
def test_converting_and_reading_import_no_framework(tmp_path: Path, format: str) -> None:
    """Nor what talks to servers: each start would take 25 ms longer."""
    source = class_folders(tmp_path / "src", {"a": 2})
    script = f"import streamkit; streamkit.convert(sys.argv[1], sys.argv[2], format={format!r}, workers=1)"
    script += "; assert len([*streamkit.Loader(sys.argv[2], image_size=(8, 8))]) == 1"
    found = modules_after(script, source, tmp_path / "out")
    if int(pa.__version__.split(".")[0]) < 26:  # older ones import pandas, if there is one, when they look at a list
        found -= {"pandas"}
    assert not found & {"tensorflow", "keras", "torch", "jax", "tensorflow_datasets", "pandas", "asyncio", "fsspec"}


BEFORE = ["", "import streamkit.convert", "from streamkit.convert import Report", "import streamkit.cli"]
CALLING = """
import streamkit
assert streamkit.convert(sys.argv[1], sys.argv[2], format="tfrecord", workers=1).n_items == 2
from streamkit import convert
assert convert(sys.argv[1], sys.argv[2], format="tfrecord").already_done
"""


@pytest.mark.parametrize("first", BEFORE)
def test_convert_can_be_called_whatever_was_imported_first(tmp_path: Path, first: str) -> None:
    """`streamkit.convert` is a function to users, and a package to Python's import system."""
    modules_after(first + CALLING, class_folders(tmp_path / "src", {"a": 2}), tmp_path / "out")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_say_what_they_are_for(path: Path) -> None:
    """A docstring with one worked example, which runs as a doctest."""
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert text, "no docstring"
    assert ">>> " in text, "no example"
    assert text.splitlines()[0].strip().endswith((".", ":", "?")) or len(text.splitlines()) > 1


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_are_short(path: Path) -> None:
    n = len(path.read_text().splitlines())
    name = path.relative_to(PACKAGE).as_posix()
    assert n <= 300, f"{name} has {n} lines: two ideas?"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_names_say_something(path: Path) -> None:
    for part in path.relative_to(PACKAGE).with_suffix("").parts:
        assert not {"util", "utils", "helper", "helpers", "common", "base", "manager", "misc"} & set(part.split("_"))


@pytest.mark.parametrize("name", [name for name in streamkit.__all__ if name != "__version__"])
def test_public_names_have_docstrings(name: str) -> None:
    thing = getattr(streamkit, name)
    assert inspect.getdoc(thing), name
    if inspect.isclass(thing):
        for member, value in vars(thing).items():
            if not member.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
                assert inspect.getdoc(value), f"{name}.{member}"


def test_all_is_sorted_and_complete() -> None:
    assert streamkit.__all__ == sorted(streamkit.__all__)
    assert set(dir(streamkit)) >= set(streamkit.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        streamkit.no_such_name  # noqa: B018


def test_every_argument_of_convert_is_explained() -> None:
    from streamkit.convert.run import convert

    text = inspect.getdoc(convert) or ""
    for name in inspect.signature(convert).parameters:
        assert f"\n    {name}: " in text, name


# The command line


def commands() -> dict[str, argparse.ArgumentParser]:
    (action,) = [a for a in parser()._actions if isinstance(a, argparse._SubParsersAction)]
    assert {choice.dest for choice in action._choices_actions if choice.help} == set(action.choices)
    return dict(action.choices)


@pytest.mark.parametrize("name", commands())
def test_every_command_has_help_and_an_example_that_parses(name: str) -> None:
    command = commands()[name]
    assert command.description
    for action in command._actions:
        assert action.help or action.choices, f"{name} {action.dest} has no help"
    assert command.epilog and command.epilog.startswith("example: streamkit ")
    words = shlex.split(command.epilog.removeprefix("example: streamkit "))
    assert words[0] == name
    assert parser().parse_args(words).command == name


def test_the_command_line_offers_what_the_library_offers() -> None:
    from streamkit.convert.run import convert

    offered = {action.dest for action in commands()["convert"]._actions} - {"help", "quiet", "debug", "json"}
    assert offered == set(inspect.signature(convert).parameters) - {"progress", "executor"}


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for args, said in (
        (["--help"], "convert"),
        (["convert", "--help"], "--on-bad"),
        (["--version"], streamkit.__version__),
    ):
        with pytest.raises(SystemExit) as caught:
            parser().parse_args(args)
        assert caught.value.code == 0
        assert said in capsys.readouterr().out

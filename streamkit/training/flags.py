"""The flags of `scripts/train.py`: what may be written after each, checked before a framework is loaded.

>>> args = parse_arguments(["out/", "--batch-size", "auto:512", "--image-size", "96x64"])
>>> args.batch_size, args.image_size
(Auto(update=512), (96, 64))
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from streamkit.errors import UsageError
from streamkit.units import size


@dataclass(frozen=True)
class Auto:
    """--batch-size auto: as many samples an update, in the largest steps that fit."""

    update: int = 256


def image_size(text: str) -> tuple[int, int]:
    """Parse "HxW"."""
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not HxW, such as 96x96")
    return int(match[1]), int(match[2])


def at_least(low: int) -> Callable[[str], int]:
    """A parser of whole numbers from `low` on."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"\d{1,9}", text) or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} on")
        return int(text)

    return parse


def number(low: float, high: float) -> Callable[[str], float]:
    """A parser of numbers between two, which are left out."""

    def parse(text: str) -> float:
        if not re.fullmatch(r"\d*\.?\d+(e-?\d+)?", text) or not low < float(text) < high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number between {low:g} and {high:g}")
        return float(text)

    return parse


def batch_size(text: str) -> int | Auto:
    """Parse a number, "auto" or "auto:SAMPLES"."""
    kind, colon, update = text.partition(":")
    if kind == "auto" and (not colon or update):
        return Auto(at_least(1)(update)) if colon else Auto()
    return at_least(1)(text)


def memory(text: str) -> int:
    """Parse a size such as 2GB [B]."""
    try:
        return size(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The parsed command line (or `arguments`); argparse ends the process with exit code 2 where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="train.py",
        description="Train a network on a streamkit dataset.",
        epilog="example: train.py out/ --epochs 15 --image-size 96x96",
    )
    add = parser.add_argument
    add("out", metavar="OUT", help="folder that `streamkit convert` made")
    add("--epochs", type=at_least(1), default=10, metavar="N", help="default: 10")
    add("--image-size", type=image_size, metavar="HxW", help="resize images; needed if sizes differ")
    add("--seed", type=at_least(0), default=0, metavar="N", help="of weights and order, default: 0")
    add("--backend", choices=("tensorflow", "jax", "torch"), help="default: what Keras is set to")
    add("--loader", choices=("tf", "keras"), help="default: what suits the backend of Keras")
    add(
        "--devices",
        type=at_least(1),
        default=1,
        metavar="N",
        help="train on so many GPUs, or CPUs where there is none; default: 1",
    )
    add("--class-weights", action="store_true", help="weigh classes by how rare they are")
    for group in (_network, _memory, _smaller, _run):
        group(parser)
    args = parser.parse_args(arguments)
    _refuse(parser, args)
    return args


def _network(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("the network").add_argument
    models = ("small_cnn", "separable_cnn", "resnet", "lstm", "text_cnn")
    add("--model", choices=models, help="default: separable_cnn of images, small_cnn of series, text_cnn of tokens")
    add("--conv", choices=("standard", "separable"), help="kind of convolutions, default: as the model's name says")
    add("--width", type=number(0, 100), default=1.0, metavar="X", help="this many times the usual filters, default: 1")
    add("--norm", choices=("batch", "group"), default="batch", help="normalisation, default: batch")
    text = "flip, shift and zoom images at random; default: those of 64 pixels a side and more"
    add("--augment", action=argparse.BooleanOptionalAction, help=text)
    add("--rate", type=number(0, 100), default=3e-3, metavar="X", help="highest learning rate, default: 0.003")


def _memory(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("memory").add_argument
    text = "samples a step, default: 32; auto: the largest batch that fits, N samples an update (default: 256)"
    add("--batch-size", type=batch_size, default=32, metavar="N|auto[:N]", help=text)
    add("--memory-limit", type=memory, metavar="SIZE", help="what auto may use, such as 2GB; default: what is free")
    text = "steps whose gradients make one update, default: 1"
    add("--accumulate", type=at_least(1), default=1, metavar="N", help=text)
    add("--precision", default="float32", choices=("float32", "mixed_float16", "mixed_bfloat16"))
    add("--remat", action="store_true", help="compute stages again in the backward pass; needs --norm group")


def _smaller(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("smaller models").add_argument
    text = "make this share of the weights zero while training, such as 0.8"
    add("--prune", type=number(0, 1), metavar="SHARE", help=text)
    text = "factor the trained layers, such as 0.95, and fine-tune"
    add("--low-rank", type=number(0, 1), metavar="ENERGY", help=text)
    add("--fine-tune", type=at_least(1), default=2, metavar="N", help="epochs after --low-rank, default: 2")
    text = "of the trained model: layers that Keras can, or all through TFLite"
    add("--quantize", choices=("int8", "tflite"), help=text)
    text = "search rate, width and sparsity first (Hyperband); needs a folder to go on in"
    add("--tune", action="store_true", help=text)
    text = "accuracy that half the size is worth: 0.01"
    add("--tune-price", type=number(-1, 1), default=0.01, metavar="X", help=text)


def _run(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("the run").add_argument
    add("--patience", type=at_least(1), metavar="N", help="stop after N epochs without a lower loss (of val, if any)")
    text = "folder of a run: begin it there, or go on exactly where it was interrupted; holds best.keras and last.keras"
    add("--resume", type=Path, metavar="RUN", help=text)
    text = "steps between two saves of RUN, besides one at the end of every epoch, default: 1000"
    add("--save-every", type=at_least(1), metavar="N", help=text)
    add("--log-dir", type=Path, metavar="DIR", help="write epochs.csv, memory.csv and TensorBoard's files there")
    add("--profile", action="store_true", help="record steps 5 to 9 below --log-dir")
    add("--report", type=Path, metavar="FILE", help="write a page of curves, memory and a table of what techniques did")


def _refuse(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.profile and args.log_dir is None:
        parser.error("--profile needs --log-dir")
    if args.tune and args.resume is None and args.log_dir is None:
        parser.error("--tune needs --resume or --log-dir, where its trials are kept")
    if args.tune and args.prune is not None:
        parser.error("--tune chooses how much to prune, so --prune does not go with it")
    if args.quantize == "tflite" and args.model == "lstm":
        parser.error("--quantize tflite makes no recurrent layer int8, so --model lstm does not go with it")
    if args.save_every is not None and args.resume is None:
        parser.error("--save-every needs --resume")
    if args.memory_limit is not None and isinstance(args.batch_size, int):
        parser.error("--memory-limit is for --batch-size auto")

"""`streamkit bench`.

>>> import argparse
>>> p = argparse.ArgumentParser()
>>> arguments(p)
>>> p.parse_args(["out", "--image-size", "96x128"]).image_size
(96, 128)
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from streamkit.terminal import progress_bar, say, show, show_json

HELP = "measure a dataset on this machine, and say what would make it faster"
DESCRIPTION = "Measure each stage of reading, the machine's own limits, and changes that would help, tried on a sample."
EXAMPLE = "streamkit bench out/ --image-size 224x224"


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write HEIGHTxWIDTH, such as 224x224")
    return int(height), int(width)


def arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("out", metavar="OUT", help="folder of the dataset")
    p.add_argument("--split", metavar="NAME", help="split to measure (default: the largest)")
    p.add_argument(
        "--batch-size", type=int, metavar="N", help="samples a batch (default 32, or all of a smaller split)"
    )
    p.add_argument(
        "--image-size", type=_size, metavar="HxW", help="size of delivered images (default: theirs, or 224x224)"
    )
    p.add_argument("--samples", type=int, default=256, metavar="N", help="samples to try each stage on (default 256)")
    p.add_argument("--root", metavar="DIR", help="where adopted files lie, if not where they were indexed")
    p.add_argument("--html", metavar="FILE", help="write the figures as a page too")
    p.add_argument(
        "--simulate",
        metavar="CLUSTER",
        help="model a cluster that reads from object storage: nodes=64,bandwidth=10Gbit,latency=30ms,batch=1024",
    )


def run(args: argparse.Namespace) -> None:
    from streamkit.reports import bench, cluster
    from streamkit.reports.page import page_file

    model = None if args.simulate is None else cluster.Cluster.parse(args.simulate)
    if args.html:
        page_file(args.html)
    found = bench.bench(
        args.out,
        split=args.split,
        batch_size=args.batch_size,
        image_size=args.image_size,
        n_samples=args.samples,
        root=args.root,
        frontend=_tensorflow(),
        progress=None if args.quiet else progress_bar,
    )
    if model is not None:
        found["simulation"] = bench.simulation(args.out, found, model)
    if args.json:
        show_json(found)
    else:
        show(bench.as_text(found))
        if model is not None:
            show("\n" + cluster.as_text(model, found["simulation"]))
    if args.html:  # last, so that the figures are seen whatever becomes of the page
        bench.write_html(args.html, found)
    if args.html and not args.json and not args.quiet:
        say(f"wrote {args.html}; open it in a browser")


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """What C++ writes to stderr before TensorFlow's log level holds is lost; Python's errors are raised as ever."""
    if sys.stderr is None:  # closed by who called
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def _tensorflow() -> Any:
    """tf.data batches of a dataset, where TensorFlow is installed."""
    from importlib.util import find_spec

    if find_spec("tensorflow") is None:
        return None
    from streamkit.frontends import dataset

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # remarks on CUDA and oneDNN, here no news to anybody

    def stream(path: str | os.PathLike[str], options: dict[str, Any]) -> Iterable[Any]:
        with _silent_stderr():
            import tensorflow  # noqa: F401
        return dataset(path, **options)

    return stream

"""Which part of the global batch is this process's, as the framework that runs it says. None is imported to find out.

>>> place(None, None), place(1, 4)
((0, 1), (1, 4))
>>> tf_config('{"cluster": {"chief": ["a:1"], "worker": ["b:1", "c:1"]}, "task": {"type": "worker", "index": 1}}')
(2, 3)
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from streamkit.errors import UsageError

Place = tuple[int, int]  # shard_index, num_shards


def place(shard_index: int | None, num_shards: int | None) -> Place:
    """The arguments if they are given, else what the frameworks in use say, else the only one: (0, 1).

    Raises:
        UsageError: only one argument, or frameworks that disagree.
    """
    if (shard_index is None) != (num_shards is None):
        raise UsageError("shard_index and num_shards go together")
    if shard_index is not None and num_shards is not None:
        return shard_index, num_shards
    found = {name: part for name, part in (ask() for ask in _ASKED) if part is not None and part[1] > 1}
    if len(set(found.values())) > 1:
        said = ", ".join(f"{name} says {part[0]} of {part[1]}" for name, part in found.items())
        raise UsageError(f"which shard is this? {said}", hint="Pass shard_index= and num_shards=.")
    return next(iter(found.values()), (0, 1))


def tf_config(text: str) -> Place | None:
    """This worker among those of TF_CONFIG, the chief first, as tf.distribute counts them. None for other tasks.

    Source: tensorflow/python/distribute/multi_worker_util.py.
    """
    try:
        config = json.loads(text or "{}")
        cluster, task = config.get("cluster", {}), config.get("task", {})
        kind, number = str(task.get("type", "")), int(task.get("index", 0))
        return among(cluster, kind, number)
    except (ValueError, TypeError, AttributeError):
        raise UsageError(f"TF_CONFIG is {text[:80]!r}, which is no cluster and task") from None


def among(cluster: dict[str, Any], kind: str, number: int) -> Place | None:
    """Task `number` of its kind among chief and workers; None with parameter servers, which ask for data otherwise."""
    kinds = [k for k in ("chief", "master", "worker") if k in cluster]
    if kind not in kinds or "ps" in cluster:
        return None
    before = sum(len(cluster[k]) for k in kinds[: kinds.index(kind)])
    return before + number, sum(len(cluster[k]) for k in kinds)


def refuse_workers_of_keras(strategy: Any = None) -> None:
    """Keras' own loops do not work on several workers of tf.distribute, so they are not begun.

    Args:
        strategy: a model's; None for the one in whose scope this is called.

    Raises:
        UsageError: it has several workers.
    """
    tf = sys.modules.get("tensorflow")
    if tf is None or not hasattr(tf, "distribute"):
        return
    strategy = strategy or tf.distribute.get_strategy()
    resolver = strategy.cluster_resolver
    if resolver is None or not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return
    part = among(resolver.cluster_spec().as_dict(), resolver.task_type or "", resolver.task_id or 0)
    if part is not None and part[1] > 1:
        raise UsageError(
            "model.fit of Keras 3 fails under MultiWorkerMirroredStrategy: it takes the values of replicas for tensors",
            hint="Write the step yourself, over strategy.distribute_datasets_from_function; or train on JAX or PyTorch.",
        )


def _torch() -> tuple[str, Place | None]:
    found = sys.modules.get("torch.distributed")
    running = found is not None and found.is_available() and found.is_initialized()
    return "torch.distributed", (found.get_rank(), found.get_world_size()) if found and running else None


def _jax() -> tuple[str, Place | None]:
    found = sys.modules.get("jax")
    running = found is not None and "jax.distributed" in sys.modules and found.distributed.is_initialized()
    return "jax.distributed", (found.process_index(), found.process_count()) if found and running else None


def _tensorflow() -> tuple[str, Place | None]:
    found = sys.modules.get("tensorflow")
    part = None
    if found is not None and hasattr(found, "distribute") and found.distribute.has_strategy():
        resolver = found.distribute.get_strategy().cluster_resolver
        if resolver is not None and resolver.task_type:
            part = among(resolver.cluster_spec().as_dict(), resolver.task_type, resolver.task_id)
    return "tf.distribute", part


def _environment() -> tuple[str, Place | None]:
    return "TF_CONFIG", tf_config(os.environ.get("TF_CONFIG", ""))


_ASKED = (_torch, _jax, _tensorflow, _environment)

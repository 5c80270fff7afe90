"""One process of several that train together, as tests start them: what it was given, as JSON.

python replicas.py tensorflow|mirrored|torch|jax OUT PORT,PORT,... RANK N_RANKS
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

EPOCHS = 2


def tensorflow(out: str, ports: list[int], rank: int, n_ranks: int) -> dict[str, Any]:
    """MultiWorkerMirroredStrategy with a step of one's own; every step sums over the replicas."""
    workers = [f"localhost:{port}" for port in ports]
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": rank}})
    import tensorflow as tf

    import streamkit

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    with strategy.scope():
        weight = tf.Variable(0.0)
    dataset = strategy.distribute_datasets_from_function(
        lambda context: streamkit.dataset(out, batch_size=4, seed=1, drop_remainder=False)
    )

    @tf.function(reduce_retracing=True)
    def step(x: Any, y: Any) -> Any:
        def replica(x: Any, y: Any) -> Any:
            total = tf.distribute.get_replica_context().all_reduce("SUM", tf.reduce_sum(x[:, 0]))
            weight.assign_add(total)
            return total

        return strategy.run(replica, args=(x, y))

    seen, sums = [], []
    for _ in range(EPOCHS):
        for x, y in dataset:
            seen.append([int(v) for v in strategy.experimental_local_results(x)[0].numpy()[:, 0]])
            sums.append(float(strategy.experimental_local_results(step(x, y))[0]))
    import keras

    from streamkit.training import fit

    refused = []
    with strategy.scope():
        model = keras.Sequential([keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        for train in (
            lambda: fit(model, streamkit.Loader(out), epochs=1, run_dir=f"{out}-run"),
            lambda: streamkit.sequence(out),
            lambda: model.fit(streamkit.dataset(out), epochs=1, verbose=0, shuffle=False),
        ):
            try:
                train()
                refused.append("no error")
            except Exception as error:
                refused.append(f"{type(error).__name__}: {error}")
    return {"seen": seen, "sums": sums, "refused": refused}


def mirrored(out: str, ports: list[int], rank: int, n_ranks: int) -> dict[str, Any]:
    """`model.fit` on two devices of one process, and on one: the weights, and how many steps an epoch had."""
    import tensorflow as tf

    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    import keras

    import streamkit
    from streamkit.training import fit

    weights = []
    for devices in (["CPU:0"], ["CPU:0", "CPU:1"]):
        for way in ("model.fit", "streamkit.training.fit"):
            with tf.distribute.MirroredStrategy(devices).scope():
                keras.utils.set_random_seed(1)
                model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(1)])
                model.compile(keras.optimizers.SGD(1e-4), "mse")
            loader = streamkit.Loader(out, batch_size=8, seed=1)
            if way == "model.fit":
                model.fit(loader.as_tf(), epochs=2, shuffle=False, verbose=0)
            else:
                fit(model, loader.as_tf(), epochs=2, run_dir=f"{out}-mirrored-{len(devices)}", verbose=0)
            weights.append(
                [float(v) for w in model.get_weights() for v in w.ravel()]
                + [int(model.optimizer.iterations.value.numpy())]
            )
    moved = streamkit.Loader(out, batch_size=8, seed=1, device="CPU:1")
    on = [[x.device.rpartition("/")[2], [int(v) for v in x[:, 0]]] for x, _ in moved.as_tf()]
    return {"weights": weights, "moved": on}


def torch(out: str, ports: list[int], rank: int, n_ranks: int) -> dict[str, Any]:
    """Two processes of gloo; every step sums over them."""
    import torch.distributed as dist

    import streamkit

    dist.init_process_group("gloo", init_method=f"tcp://localhost:{ports[0]}", rank=rank, world_size=n_ranks)
    loader = streamkit.Loader(out, batch_size=4, seed=1).as_torch()
    seen, sums = [], []
    for _ in range(EPOCHS):
        for x, _ in loader:
            seen.append([int(v) for v in x[:, 0]])
            total = x[:, 0].sum()
            dist.all_reduce(total)
            sums.append(float(total))
    dist.barrier()
    dist.destroy_process_group()
    return {"seen": seen, "sums": sums}


def jax(out: str, ports: list[int], rank: int, n_ranks: int) -> dict[str, Any]:
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    import jax

    jax.distributed.initialize(f"localhost:{ports[0]}", n_ranks, rank)
    import streamkit

    seen = [[int(v) for v in x[:, 0]] for loader in [streamkit.Loader(out, batch_size=4, seed=1)] for x, _ in loader]
    other = jax.local_devices()[1]
    moved = [[int(v) for v in x[:, 0]] for x, _ in streamkit.Loader(out, batch_size=4, seed=1, device=other)]
    (x, _), *_ = streamkit.Loader(out, batch_size=4, device=other)
    found = {"seen": seen, "moved": moved, "there": x.devices() == {other}}
    jax.distributed.shutdown()
    return found


if __name__ == "__main__":
    kind, out, ports, rank, n_ranks = sys.argv[1:]
    print(
        json.dumps(globals()[kind](out, [int(port) for port in ports.split(",")], int(rank), int(n_ranks))), flush=True
    )

"""Many devices, of one process or of several that :mod:`jax.distributed` has joined.

Molecules are spread over all devices; parameters and what is known of the training set are on each.
Every process makes the same calls and holds the same numbers; the first one alone writes files.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ..errors import Code, ConfigError, OpmlError, counted

AXIS = "molecules"


def join(coordinator: str, n_processes: int | None = None, process: int | None = None) -> None:
    """Make this process one of several; call it before anything else of JAX.

    Args:
      coordinator: host and port of the first process, or ``"auto"`` where JAX finds everything
        itself (Slurm, Open MPI, Kubernetes, TPU pods).
      n_processes: how many there are.
      process: which one this is, from 0.

    Raises:
      OpmlError: numbers that do not fit, or processes that did not find each other.
    """
    auto = coordinator == "auto"
    fits = auto or (n_processes and process is not None and 0 <= process < n_processes)
    if not fits or (auto and (n_processes is not None or process is not None)):
        got = f"{coordinator}, {n_processes} processes, number {process}"
        expected = "HOST:PORT, how many processes and which one (from 0), or auto alone"
        raise OpmlError("coordinator", got=got, expected=expected)
    try:
        jax.distributed.initialize(None if auto else coordinator, n_processes, process)
    except (RuntimeError, ValueError) as err:
        got = f"{coordinator}, which did not answer ({err})"
        expected = "an address that all processes reach"
        raise OpmlError("coordinator", got=got, expected=expected, code=Code.DEVICE) from err


def leave() -> None:
    """Part from the other processes, so that each may take its own time from here on."""
    if jax.process_count() > 1:
        jax.distributed.shutdown()


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def wait(where: str) -> None:
    """Go on when every process is here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(where)


def mesh_for(n: int | None = None) -> Mesh | None:
    """Devices in one axis; None for one device.

    Args:
      n: molecules that they must share evenly; of one process as many devices are taken as can.
        Default: any number.

    Raises:
      ConfigError: molecules that several processes cannot share evenly.
    """
    devices = jax.devices()
    if n is not None and n % len(devices):
        if jax.process_count() > 1:
            got = f"batches of {counted(n, 'structure')} for {len(devices)} devices"
            expected = "a multiple of their number"
            raise ConfigError("fit.batch_size", got=got, expected=expected)
        devices = devices[: max(k for k in range(1, len(devices)) if n % k == 0)]
    return None if len(devices) == 1 else Mesh(np.array(devices), (AXIS,))


def replicate(tree: Any, mesh: Mesh | None) -> Any:
    """Arrays on every device; without a mesh as they are."""
    return tree if mesh is None else jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def spread(tree: Any, mesh: Mesh | None) -> Any:
    """Inside a jitted function: molecules, the first axis, each on one device."""
    if mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec(AXIS)))


def jit(function: Any, mesh: Mesh | None) -> Any:
    """``jax.jit`` of a function whose results every device gets."""
    if mesh is None:
        return jax.jit(function)
    return jax.jit(function, out_shardings=NamedSharding(mesh, PartitionSpec()))


def collect(tree: Any) -> Any:
    """Arrays that are spread over devices, whole, on the host of every process."""
    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, tree)
    from jax.experimental import multihost_utils

    gather = functools.partial(multihost_utils.process_allgather, tiled=True)
    return jax.tree.map(np.asarray, gather(tree))


def gathered(arrays: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
    """Arrays of every process, of whatever shapes: a list for each process, on all of them."""
    if jax.process_count() == 1:
        return [list(arrays)]
    from jax.experimental import multihost_utils

    file = io.BytesIO()
    np.savez(file, *arrays)
    own = np.frombuffer(file.getvalue(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.array([len(own)]))).reshape(-1)
    room = np.zeros(sizes.max(), np.uint8)
    room[: len(own)] = own
    every = np.asarray(multihost_utils.process_allgather(room))
    files = [np.load(io.BytesIO(x[:n].tobytes())) for x, n in zip(every, sizes, strict=True)]
    return [[file[f"arr_{i}"] for i in range(len(file.files))] for file in files]


def of_first(tree: Any) -> Any:
    """What the first process has, on every one: machines may differ in the last bits."""
    if jax.process_count() == 1:
        return tree
    from jax.experimental import multihost_utils

    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(tree))

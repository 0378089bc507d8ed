"""Where lanes, images and problems lie on a mesh of devices, and how they get there and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

Array = jax.Array


class Wave(dict):
    """Lanes of a wave: `state` and `status` (S, N, ...), and `targets`: pixels (N, H, W, C) with
    their own observations (a tree of (N, ...)), or None where one observation is all images'."""


jax.tree_util.register_pytree_node(
    Wave,
    lambda wave: ((wave["state"], wave["status"], wave["targets"]), None),
    lambda _, parts: Wave(state=parts[0], status=parts[1], targets=parts[2]),
)


@dataclasses.dataclass(frozen=True)
class Placed:
    """Where things are: lanes sharded over all axes of a mesh, problems everywhere."""

    mesh: Mesh
    lanes: NamedSharding
    images: NamedSharding
    everywhere: NamedSharding

    @classmethod
    def of(cls, mesh: Mesh) -> Placed:
        """On all axes of a mesh. `jax.make_mesh` makes axes that want every result's layout spelled
        out; here the compiler chooses."""
        axes = mesh.axis_names
        mesh = Mesh(mesh.devices, axes)
        return cls(
            mesh,
            NamedSharding(mesh, P(None, axes)),
            NamedSharding(mesh, P(axes)),
            NamedSharding(mesh, P()),
        )

    def put_everywhere(self, tree: Any) -> Any:
        """A tree of arrays on every device."""
        if self.everywhere.is_fully_addressable:
            return jax.device_put(tree, self.everywhere)

        def placed(leaf):
            leaf = np.float32(leaf) if isinstance(leaf, float) else leaf
            return put(np.asarray(jax.device_get(leaf)), self.everywhere)

        return jax.tree.map(placed, tree)

    def put_lanes(self, array: np.ndarray) -> Array:
        """(S, N, ...), spread along N."""
        return put(array, self.lanes)

    def put_images(self, array: np.ndarray) -> Array:
        """(N, ...), spread along N."""
        return put(array, self.images)


def put(array: np.ndarray, sharding: NamedSharding) -> Array:
    """Places a host array; with several processes each places its own part."""
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def fetch(array: Array) -> np.ndarray:
    """A sharded array on the host, in every process."""
    if array.is_fully_addressable:
        return np.asarray(jax.device_get(array))
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def sharded(placed: Placed, function: Callable) -> Callable:
    """Maps function(problem, wave) over the devices of a mesh."""
    axes = placed.mesh.axis_names
    specs = Wave(state=P(None, axes), status=P(None, axes), targets=P(axes))
    return jax.shard_map(
        function, mesh=placed.mesh, in_specs=(P(), specs), out_specs=specs, check_vma=False
    )

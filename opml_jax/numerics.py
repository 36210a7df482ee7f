"""Safe mathematics and the pytree decorator: what every floor above stands on."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, TypeAlias, TypeVar, dataclass_transform

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.interpreters import ad

from .errors import PrecisionError

T = TypeVar("T")
Array: TypeAlias = jax.Array | np.ndarray  # leaves: NumPy on the host, JAX on the device


def static(**kwargs: Any) -> Any:
    """Dataclass field that belongs to the tree structure (hashable, compared by jit)."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


@dataclass_transform(frozen_default=True, field_specifiers=(static, dataclasses.field))
def pytree(cls: type[T]) -> type[T]:
    """Frozen dataclass whose fields are leaves, except those marked :func:`static`.

    Rebuilding inside a transformation skips ``__init__`` and ``__post_init__``: what jit
    hands back are tracers, and they were validated when they were still numbers.
    """
    cls = dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    leaves = tuple(f.name for f in fields if not f.metadata.get("static"))
    aux = tuple(f.name for f in fields if f.metadata.get("static"))

    def flatten(x):
        return [getattr(x, n) for n in leaves], tuple(getattr(x, n) for n in aux)

    def flatten_with_keys(x):
        children, meta = flatten(x)
        keys = [jax.tree_util.GetAttrKey(n) for n in leaves]
        return list(zip(keys, children, strict=True)), meta

    def unflatten(meta, children):
        x = object.__new__(cls)
        for name, value in zip(leaves, children, strict=True):
            object.__setattr__(x, name, value)
        for name, value in zip(aux, meta, strict=True):
            object.__setattr__(x, name, value)
        return x

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def replace(x: T, **changes: Any) -> T:
    """Copy of a :func:`pytree` instance with some fields changed, without validation."""
    copy = object.__new__(type(x))
    for field in dataclasses.fields(x):  # type: ignore[arg-type]
        object.__setattr__(copy, field.name, changes.pop(field.name, getattr(x, field.name)))
    if changes:
        raise TypeError(f"{type(x).__name__} has no field {sorted(changes)}")
    return copy


def is_concrete(x: Any) -> bool:
    """True when ``x`` holds numbers, False for a tracer or a placeholder of jax."""
    return isinstance(x, np.ndarray | np.generic | int | float) or (
        isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer)
    )


def einsum(subscripts: str, *operands: Any) -> jax.Array:
    """``jnp.einsum`` at full precision: accelerators may otherwise use TF32 silently."""
    return jnp.einsum(subscripts, *operands, precision=jax.lax.Precision.HIGHEST)


def matmul(a: Any, b: Any) -> jax.Array:
    """``a @ b`` at full precision (see :func:`einsum`)."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def safe_sqrt(x: Array) -> jax.Array:
    """Square root whose derivative at 0 is 0 instead of infinite."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def safe_norm(x: Array, axis: int = -1) -> jax.Array:
    """Euclidean norm whose gradient at the zero vector is 0 instead of NaN."""
    return safe_sqrt(jnp.sum(x * x, axis=axis))


def sum_of_tangents(terms: Sequence[Array], out: Array) -> Array | ad.Zero:
    """Tangent of ``out`` by a derivative rule; without terms the zero JAX need not compute."""
    if not terms:
        return ad.Zero(jax.typeof(out).to_tangent_aval())
    return functools.reduce(jnp.add, terms)


def require_x64(what: str) -> None:
    """Raise :class:`PrecisionError` unless 64-bit floats are enabled in JAX."""
    if not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]  # dynamic
        raise PrecisionError(
            f"{what} needs float64, but jax_enable_x64 is off. Put "
            'jax.config.update("jax_enable_x64", True) before the first JAX call.'
        )

"""Normalisation of features: fitted once, stored with what was fitted on them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np

from ..errors import OpmlError, refusal
from ..numerics import Array, einsum, pytree, static
from .hierarchy import AtomFeatures

FORMAT = "opml-normalisation-1"


@pytree
class Normalisation:
    """Scale of every irrep, and mean of every scalar, by element.

    Irreps with L > 0 are divided by their root mean square norm; 0e also have their mean taken
    off. What does not vary becomes zero instead of loud rounding noise.

    Attributes:
      irreps: of the features.
      mean: ``(n_elements, n_irreps)``, zero but for 0e.
      inverse_scale: ``(n_elements, n_irreps)``.
    """

    irreps: e3nn.Irreps = static()
    mean: Array
    inverse_scale: Array

    def __call__(self, features: e3nn.IrrepsArray, element: Array) -> e3nn.IrrepsArray:
        """Normalised features.

        Args:
          features: ``(..., n_atoms, irreps.dim)``.
          element: ``(..., n_atoms)`` index of the element, as a layout has it.

        Raises:
          OpmlError: features with other irreps.
        """
        if features.irreps != self.irreps:
            raise OpmlError(refusal("features", got=features.irreps, expected=str(self.irreps)))
        hot = jax.nn.one_hot(element, len(self.mean), dtype=features.array.dtype)
        # an atom that is nothing but zeros is padding, and stays so
        hot = hot * jnp.any(features.array != 0, axis=-1, keepdims=True)
        mean, scale = (einsum("...e,ec->...c", hot, x) for x in (self.mean, self.inverse_scale))
        chunks, start = [], 0
        for (n, ir), x in zip(features.irreps, features.chunks, strict=True):
            own = slice(start, start + n)
            shifted = x - mean[..., own, None] if str(ir) == "0e" else x
            chunks.append((shifted * scale[..., own, None]).reshape(*x.shape[:-2], n * ir.dim))
            start += n
        return e3nn.IrrepsArray(self.irreps, jnp.concatenate(chunks, axis=-1))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, beside its target first."""
        from safetensors.numpy import save_file

        path = Path(path)
        part = path.with_name(path.name + ".part")
        arrays = {"mean": np.asarray(self.mean), "inverse_scale": np.asarray(self.inverse_scale)}
        save_file(arrays, part, {"format": FORMAT, "irreps": json.dumps(str(self.irreps))})
        part.replace(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Normalisation:
        """Read what :meth:`save` wrote.

        Raises:
          OpmlError: a file of another kind.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "numpy") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise OpmlError(refusal("path", got=str(path), expected="a normalisation"))
                mean, scale = file.get_tensor("mean"), file.get_tensor("inverse_scale")
        except (SafetensorError, OSError) as error:
            raise OpmlError(
                refusal("path", got=f"{path}: {error}", expected="a normalisation file")
            ) from error
        return cls(e3nn.Irreps(json.loads(metadata["irreps"])), mean, scale)


def fit_normalisation(
    features: e3nn.IrrepsArray,
    element: Array,
    n_elements: int,
    *,
    recipe: AtomFeatures | None = None,
    mask: Array | None = None,
    floor: float = 1e-12,
) -> Normalisation:
    """Fit a normalisation (host side).

    Args:
      features: ``(..., n_atoms, irreps.dim)`` of many atoms.
      element: ``(..., n_atoms)`` index of the element of each.
      n_elements: number of elements.
      recipe: what made them. Powers of very different size are then told apart by the floor.
      mask: ``(..., n_atoms)`` True for real atoms. Default: all.
      floor: a spread below this fraction of the largest feature of an atom of that element (and,
        with a recipe, of that operator and power) is rounding.
    """
    flat = np.asarray(features.array, float).reshape(-1, features.irreps.dim)
    element = np.asarray(element).ravel()
    real = np.ones(len(element), bool) if mask is None else np.asarray(mask).ravel()
    n_irreps = features.irreps.num_irreps
    first = np.cumsum([0] + [ir.dim for n, ir in features.irreps for _ in range(n)])[:-1]
    kinds = [(c.operator, c.power) for c in recipe.channels] if recipe else [()] * n_irreps
    group = np.array([kinds.index(k) for k in kinds])
    mean, inverse = np.zeros((n_elements, n_irreps)), np.zeros((n_elements, n_irreps))
    for e in range(n_elements):
        x = flat[real & (element == e)]
        if not len(x):
            continue
        size = np.maximum.reduceat(np.abs(x).max(axis=0), first)
        size = np.array([size[group == g].max() for g in group])
        start, at = 0, 0
        for n, ir in features.irreps:
            part = x[:, start : start + n * ir.dim].reshape(len(x), n, ir.dim)
            if str(ir) == "0e":
                mean[e, at : at + n] = part[..., 0].mean(axis=0)
                part = part - part.mean(axis=0)
            spread = np.sqrt((part**2).sum(axis=2).mean(axis=0))
            varies = spread > floor * size[at : at + n]
            inverse[e, at : at + n] = np.where(varies, 1 / np.where(varies, spread, 1.0), 0.0)
            start, at = start + n * ir.dim, at + n
    return Normalisation(features.irreps, jnp.asarray(mean), jnp.asarray(inverse))

"""Trained models of energies: forces, batches of molecules, standard deviations."""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ...basis import batch
from ...basis.buckets import Bucket, buckets
from ...learn.chunks import in_chunks
from ...numerics import Array
from ...programs import CALL, COMPILING, Program
from ...structures import Structure, StructureBatch
from .definition import Definition, Params
from .doubt import warn_of_doubt
from .model import Model, of_one

CHUNKS = (1, 16)
"""Numbers of structures evaluated at once; the last chunk of a list is filled up by repeats.

Few, because compiling for another number costs more than filling up.
"""

MOST_SHAPES = 8
"""Shapes that a list is padded to, at most."""


class _Shapes:
    """The shapes that this process has programs for.

    Attributes:
      work: what was done in each shape, in pairs of primitives times nuclei.
      wasted: what was done more because molecules of a shape were padded to another.
    """

    def __init__(self):
        self.work: defaultdict[Bucket, float] = defaultdict(float)
        self.wasted: defaultdict[Bucket, float] = defaultdict(float)

    def take(self, needed: Bucket, n: int, calls: int, exact: bool = False) -> tuple[Bucket, float]:
        """A shape for ``n`` structures in some calls, and the work done in it when they are done.

        Unless it is to be exact, one that is there, until more was wasted in it than compiling
        another one costs.
        """
        fitting = [shape for shape in self.work if shape.covers(needed)]
        shape = min(fitting, key=lambda shape: shape.pair_work, default=needed)
        wasted = n * (shape.pair_work - needed.pair_work)
        if exact or self.wasted[needed] + wasted > COMPILING:
            shape, wasted = needed, 0
        self.wasted[needed] += wasted
        self.work[shape] += n * shape.pair_work + calls * CALL
        return shape, self.work[shape]


_shapes: dict[Any, _Shapes] = defaultdict(_Shapes)
"""By definition, whether forces have standard deviations, and structures at once."""

Uncertainty = bool | Literal["energy"]


class EnergyDefinition(Definition, abc.ABC):
    """Pure functions of a model of energies."""

    @abc.abstractmethod
    def apply(self, params: Params, structure: Structure | StructureBatch) -> dict[str, Array]:
        """Properties, ``energy`` among them, in Hartree.

        ``energy_members`` ``(..., n_members)`` of an ensemble tell its standard deviations; else
        ``energy_uncertainty`` ``()`` is that of the energy.
        """

    def forces_uncertainty(self, params: Params, structures: StructureBatch) -> Array | None:
        """Standard deviations of the forces of one network, if it has them."""
        return None


@dataclasses.dataclass(frozen=True, repr=False)
class EnergyModel(Model):
    """A model of energies ready for use; see :class:`Model` for its attributes."""

    definition: EnergyDefinition

    def energy_fn(self, params: Params | None = None) -> Callable[[Structure], Array]:
        """A pure energy function for ``jax.grad``, ``jax.vmap`` and friends.

        Args:
          params: parameters to use. Default: the model's own.

        Returns:
          ``energy(structure) -> ()`` in Hartree (``(n_structures,)`` for a batch). Forces:
          ``-jax.grad(lambda R: energy(s.replace(positions=R)))(s.positions)``. It computes in
          float64 whatever the positions are in, and refuses what :meth:`check_species` does.
        """
        return self.property_fn("energy", params)

    def property_fn(self, name: str, params: Params | None = None) -> Callable[[Structure], Array]:
        """As :meth:`energy_fn`, for anything that the definition's ``apply`` returns, by name.

        Raises:
          OpmlError: the model was not trained on it.
        """
        self.require(name)
        used = self.params if params is None else params
        return self.checked(lambda structure: self.definition.apply(used, structure)[name])

    def dipole_fn(self, params: Params | None = None) -> Callable[[Structure], Array]:
        """:meth:`property_fn` for the dipole ``(3,)`` in e Bohr."""
        return self.property_fn("dipole", params)

    def has(self, name: str) -> bool:
        """Whether the model predicts a quantity."""
        return name in ("energy", "forces")

    def predict(
        self,
        structures: Structure | Sequence[Structure],
        *,
        uncertainty: Uncertainty = False,
        bucket: Bucket | None = None,
    ) -> dict[str, np.ndarray]:
        """Energies, forces, and what else the model was trained on.

        Args:
          structures: one molecule or several (any mix of compositions the model knows).
          uncertainty: also standard deviations, over the members of an ensemble or of the last
            layer (``model.last_layer``), ``energy_uncertainty`` and ``forces_uncertainty``, scaled
            so that on validation 68 % of errors were below them. Those of forces cost a gradient
            for each member, or a derivative in each coordinate (``"energy"`` leaves them out); a
            last layer has them if forces were learned. Of molecules with surroundings that training
            lacked they are as large as errors on molecules left out, if the model was trained on
            several (``card["growth"]``). Structures far beyond the validation set's are a
            ``DataWarning``.
          bucket: shape to pad to. Default: of few round ones, so that little is compiled, those
            that waste least work.

        Returns:
          ``energy`` (Hartree), ``forces`` (Hartree/Bohr), and, if trained, ``dipole`` (e Bohr),
          ``quadrupole`` (e Bohr^2, about the centre of nuclear charge), ``polarizability`` and
          ``isotropic_polarizability`` (Bohr^3). For one molecule shapes ``()``, ``(n_atoms, 3)``,
          ``(3,)``, ``(3, 3)``, ``(3, 3)``, ``()``; for a list a leading axis, forces padded with
          zeros to the largest molecule, and ``n_atoms``.

        Raises:
          OpmlError: an empty list, an element, charge or spin the model has not seen, or standard
            deviations of a model that has none.
          PrecisionError: x64 is off.
        """
        if isinstance(structures, Structure):
            several = self.predict([structures], uncertainty=uncertainty, bucket=bucket)
            return of_one(several, ("n_atoms",))
        several = self.ready(structures, uncertainty)
        n_atoms = np.array([s.n_atoms for s in several])
        evaluate = functools.partial(self._by_shape, several, uncertainty, bucket)
        order, found = in_chunks(evaluate, len(several), CHUNKS)
        back = np.argsort(order)
        out = {}
        for name, values in found.items():
            if name.startswith("forces"):
                out[name] = np.zeros((len(several), n_atoms.max(), 3))
                for k, i in enumerate(back):
                    out[name][k, : n_atoms[k]] = values[i][: n_atoms[k]]
            else:
                out[name] = np.array(values)[back]
        out["n_atoms"] = n_atoms
        if not uncertainty:
            out.pop("energy_uncertainty", None)
        else:
            self.grow(out, several)
            warn_of_doubt(self.doubt(out), self.card.get("largest_doubt"))
        return out

    def _by_shape(
        self,
        structures: Sequence[Structure],
        uncertainty: Uncertainty,
        bucket: Bucket | None,
        chunk: int,
    ) -> tuple[np.ndarray, dict[str, list[np.ndarray]]]:
        """Indices shape by shape, and predictions in this order, ``chunk`` structures at once."""
        out: dict[str, list[np.ndarray]] = {}
        known = _shapes[self.definition, uncertainty is True, chunk]
        if bucket is None:
            basis = self.definition.basis
            shapes = buckets(structures, basis, n=MOST_SHAPES, each=COMPILING, chunk=chunk)
        else:
            shapes = [(bucket, np.arange(len(structures)))]
        for needed, index in shapes:
            calls = -(-len(index) // chunk)
            shape, work = known.take(
                bucket or needed.rounded(), calls * chunk, calls, exact=bucket is not None
            )
            evaluate = _evaluate.for_work(work)
            for start in range(0, len(index), chunk):
                part = [structures[i] for i in index[start : start + chunk]]
                full = part + [part[-1]] * (chunk - len(part))
                padded = batch(full, self.definition.basis, bucket=shape)
                result = evaluate(self.definition, self.params, padded, uncertainty is True)
                for name, values in result.items():
                    out.setdefault(name, []).extend(np.asarray(values)[: len(part)])
        return np.concatenate([index for _, index in shapes]), out

    def doubt(self, predicted: Mapping[str, np.ndarray]) -> np.ndarray:
        """Standard deviation of the energy per atom, Hartree, ``(n_structures,)``."""
        return predicted["energy_uncertainty"] / predicted["n_atoms"]

    @property
    def quick_doubt(self) -> dict[str, Any]:
        """Standard deviations of energies alone: those of forces cost more."""
        return {"uncertainty": "energy"}


@functools.partial(Program, static_argnums=(0, 3))
def _evaluate(
    definition: EnergyDefinition, params: Params, structures: StructureBatch, of_forces: bool
) -> dict[str, Array]:
    """Everything that :meth:`EnergyModel.predict` returns of a batch.

    Standard deviations of energies are always there: they cost nothing, and one program serves
    those who ask for them and those who do not. Those of forces (``of_forces``) cost more.
    """

    def total(positions):
        out = definition.apply(params, structures.replace(positions=positions))
        members = out.pop("energy_members", None)
        return (out["energy"], members if of_forces else None), (out, members)

    positions = jnp.asarray(structures.positions)
    (energy, _), back, (out, members) = jax.vjp(total, positions, has_aux=True)
    nothing = jax.tree.map(jnp.zeros_like, members if of_forces else None)
    out["forces"] = -back((jnp.ones_like(energy), nothing))[0]
    factor = {"energy": 1.0, "forces": 1.0, **params.get("calibration", {})}
    if members is not None:
        out["energy_uncertainty"] = factor["energy"] * jnp.std(members, axis=-1)
    if of_forces and members is not None:
        one = jnp.eye(members.shape[-1], dtype=members.dtype)
        each = jax.vmap(
            lambda m: -back((jnp.zeros_like(energy), jnp.broadcast_to(m, members.shape)))[0]
        )(one)
        out["forces_uncertainty"] = factor["forces"] * jnp.std(each, axis=0)
    elif of_forces and (spread := definition.forces_uncertainty(params, structures)) is not None:
        out["forces_uncertainty"] = spread
    return out

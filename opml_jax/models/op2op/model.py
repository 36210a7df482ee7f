"""A trained Op2Op model: Fock and density matrices, and what follows from them."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...basis import layout_of
from ...errors import Code, ConvergenceError, DataWarning, OpmlError, counted
from ...learn.chunks import in_chunks
from ...numerics import Array
from ...observables.aufbau import intruder
from ...operators.species import SpeciesTable
from ...programs import Program
from ...quantities import SIZES, SPREAD, Axis, cut_rows, quantity
from ...structures import Structure, StructureBatch
from ...structures.contacts import warn_of_contacts
from ...structures.elements import symbol
from ...structures.names import name_of
from ...structures.trained_for import warn_of_surroundings
from ..base.definition import Params
from ..base.doubt import warn_of_doubt
from ..base.model import Model, of_one
from .diagnosis import counted_by_kind, far_from_local, fault_of
from .draws import drawn_changes, up_to
from .functions import Op2Op
from .observed import following_from

CHUNKS = (1, 8)
"""Numbers of structures evaluated at once; see :data:`opml_jax.models.base.energy.CHUNKS`."""

WORK = 1.5
"""Work of a prediction over the cube of the number of orbitals, in the unit of
:data:`opml_jax.programs.COMPILING`: a thorough compilation pays from some ten molecules of 130
orbitals on."""

UNCONVERGED, UNCONVERGED_TIMES = 1e-5, 10.0
"""Hartree: a residual above this, and above so many times the tolerance, is an error."""

N_LIMITS = 40
"""Most structures of a validation set that say what a prediction is like."""

IN_FIELD = ("dipole", "polarizability")
"""What :meth:`Op2OpModel.property_fn` gives."""


@dataclasses.dataclass(frozen=True, repr=False)
class Op2OpModel(Model):
    """An Op2Op model ready for use; see :class:`Model` for its attributes."""

    definition: Op2Op

    @property
    def first_guess(self) -> Op2OpModel:
        """The model of the first guess alone, in closed form, with no density made consistent."""
        weights = {
            k: self.params[k] for k in ("atoms", "guess", "fade", "nonlocal") if k in self.params
        }
        return Op2OpModel(up_to(self.definition, 0), weights, self.card)

    @property
    def parts(self) -> dict[str, Model]:
        """The first guess, of a model that goes on from it."""
        return {"guess": self.first_guess} if self.definition.config.density_words else {}

    def baseline(self, structures: Sequence[Structure]) -> dict[str, np.ndarray]:
        """The first guess without what it learned: kinetic energy and electrostatics."""
        first = self.first_guess
        nothing = {**first.params, "guess": jax.tree.map(np.zeros_like, first.params["guess"])}
        return dataclasses.replace(first, params=nothing).predict(structures)

    @property
    def doubted(self) -> tuple[str, ...]:
        """Labels that :meth:`predict` has standard deviations of."""
        return ("fock", "mo_energy") if "draws" in self.params else ()

    @property
    def quick_doubt(self) -> dict[str, Any]:
        """Options of :meth:`predict`: where a density does not converge there is no doubt."""
        return {"uncertainty": True, **self.tolerant}

    @property
    def tolerant(self) -> dict[str, Any]:
        """Options of :meth:`predict` with which densities that do not converge are NaN."""
        return {"allow_unconverged": True}

    def failed(self, predicted: Mapping[str, np.ndarray]) -> np.ndarray:
        """Indices of the structures that have no self-consistent density of a molecule."""
        most = max(UNCONVERGED, UNCONVERGED_TIMES * self.definition.config.tolerance)
        return np.flatnonzero(~(predicted["residual"] < most))  # also where it is NaN

    def converged_to(self, tolerance: float) -> Op2OpModel:
        """With another :attr:`Op2OpConfig.tolerance`; see :meth:`Model.converged_to`."""
        config = dataclasses.replace(self.definition.config, tolerance=tolerance)
        definition = dataclasses.replace(self.definition, config=config)
        return dataclasses.replace(self, definition=definition)

    @property
    def instead(self) -> str:
        """What to do without energies, which need a functional of the predicted matrices."""
        return "Use fock_fn, or the prediction as the start of a PySCF calculation."

    def check_uncertainty(self) -> None:
        """Refuse standard deviations of a model trained without, or of a first guess."""
        if not self.doubted:
            raise OpmlError(
                "uncertainty",
                got="a model without one, or the first guess of a model",
                expected="that of the last map of a model that keeps it",
                hint="Train with model.uncertainty=true.",
                code=Code.CAPABILITY,
            )

    def fock_fn(self, params: Params | None = None) -> Callable[[Structure], dict[str, Array]]:
        """A pure function for ``jax.grad`` and friends: Fock, density and overlap matrix.

        Args:
          params: parameters to use. Default: the model's own.

        Returns:
          ``operators(structure) -> dict``, see :meth:`Op2Op.apply`.
        """
        used = self.params if params is None else params
        return self.checked(functools.partial(self.definition.apply, used))

    def has(self, name: str) -> bool:
        """Whether the model predicts a quantity.

        Moments and charges need a matrix that leaves no electrons out
        (:attr:`~Op2OpConfig.window`); a model of density matrices has no levels and does not
        answer a field.
        """
        config = self.definition.config
        names = {"dm", "overlap"}
        if config.target == "fock":
            names |= {"fock", "mo_energy", "gap"}
        if config.window == "lowest":
            names |= {"dipole", "mulliken_charges", "lowdin_charges"}
            names |= {"polarizability"} if config.target == "fock" else set()
        return name in names

    def property_fn(self, name: str, params: Params | None = None) -> Callable[..., Array]:
        """A pure function of one molecule, and of a uniform field if that is given.

        Args:
          name: ``"dipole"`` of the predicted density, ``(3,)`` e Bohr, or ``"polarizability"``, its
            derivative in the field, ``(3, 3)`` Bohr^3 (:meth:`Op2Op.polarizability_in_field`).
          params: parameters to use. Default: the model's own.

        Raises:
          OpmlError: another name, or :meth:`has` does not have it.
        """
        if name not in IN_FIELD or not self.has(name):
            expected = "dipole, or polarizability, of a model of whole Fock matrices"
            raise OpmlError(
                "property of an Op2Op model", got=name, expected=expected, code=Code.CAPABILITY
            )
        weights = self.params if params is None else params
        return self.checked(
            functools.partial(getattr(self.definition, f"{name}_in_field"), weights)
        )

    def dipole_fn(self, params: Params | None = None) -> Callable[..., Array]:
        """:meth:`property_fn` for the dipole ``(3,)`` in e Bohr."""
        return self.property_fn("dipole", params)

    def predict(  # type: ignore[override]
        self,
        structures: Structure | Sequence[Structure],
        *,
        uncertainty: bool = False,
        allow_unconverged: bool = False,
    ) -> dict[str, np.ndarray]:
        """Operators of closed-shell molecules, and what follows from them.

        Args:
          structures: one molecule or several (any mix of compositions the model knows).
          uncertainty: also standard deviations of a model trained with ``model.uncertainty``:
            of matrix elements as ``fock_uncertainty``, and of what follows from the matrix but
            density matrices. NaN for molecules with pairs of elements that training never had.
          allow_unconverged: molecules whose density does not become self-consistent have NaN, but
            for their ``residual``, and a warning instead of an error.

        Returns:
          ``fock`` (Hartree), ``dm``, ``overlap`` ``(nao, nao)`` in the library's AO order,
          ``mo_energy`` ``(nao,)`` and ``gap`` ``()`` in Hartree (a model of density matrices has
          neither these nor ``fock``), ``dipole`` ``(3,)`` in e Bohr
          about the centre of nuclear charge, ``mulliken_charges`` and ``lowdin_charges``
          ``(n_atoms,)``,
          (if :attr:`~Op2OpConfig.window` leaves electrons out ``first_level`` instead of dipole
          and charges), ``polarizability`` ``(3, 3)`` in Bohr^3 if the model was trained on it,
          ``residual`` ``()`` (what self-consistency lacks, Hartree; NaN of a solution that is no
          molecule's), and of a self-consistent and projected model ``nonlocality`` ``()``, the root
          mean square element that the projection leaves out of what is learned, Hartree, which
          grows with the error of the matrix that it keeps. For a list a leading axis, padded with
          zeros to the largest molecule, and ``nao`` and ``n_atoms``.

        Raises:
          OpmlError: an empty list, an element, charge or spin the model has not seen, an
            uncertainty of a model without.
          ConvergenceError: a density that did not become self-consistent, or is none of a molecule.
          PrecisionError: x64 is off.
        """
        if isinstance(structures, Structure):
            options = {"uncertainty": uncertainty, "allow_unconverged": allow_unconverged}
            return of_one(self.predict([structures], **options), tuple(SIZES.values()))
        several = self.ready(structures, uncertainty)
        sizes = {
            "nao": [layout_of(s, self.definition.basis).nao for s in several],
            "n_atoms": [s.n_atoms for s in several],
        }
        evaluate = functools.partial(self._in_batches, several, sizes, uncertainty)
        out = in_chunks(evaluate, len(several), CHUNKS)
        out |= {k: np.array(v) for k, v in sizes.items()}
        if self.definition.config.is_self_consistent:
            self._unconverged(several, out, allow_unconverged)
        failed = self.failed(out)
        for values in (v for k, v in out.items() if k not in ("residual", *sizes)):
            values[failed] = np.nan
        if self.definition.config.judges_itself:
            known = self.card.get("largest_nonlocality")
            warn_of_doubt(out["nonlocality"], known, "what is no potential in the learned matrix")
        doubtful = [i for i, s in enumerate(several) if self._unseen_pairs([s])]
        for values in (v for k, v in out.items() if k.endswith(SPREAD)):
            values[doubtful] = np.nan
        if uncertainty:
            self.grow(out, several)
            warn_of_doubt(self.doubt(out), self.card.get("largest_doubt"))
        return out

    def _in_batches(
        self,
        structures: Sequence[Structure],
        sizes: Mapping[str, Sequence[int]],
        uncertainty: bool,
        size: int,
    ) -> dict[str, np.ndarray]:
        """Predictions of all structures, ``size`` of them at once, padded with zeros."""
        out: dict[str, np.ndarray] = {}
        options = "polarizability" in self.card.get("targets", ()), uncertainty
        for padded, table, index in self.definition.batches(structures, size):
            evaluate = _evaluate.for_work(WORK * len(structures) * padded.layout.nao**3)
            predicted = evaluate(self.definition, self.params, padded, table, *options)
            for name, values in predicted.items():
                axes = _axes(name)
                shape = tuple(max(sizes[a]) if isinstance(a, str) else a for a in axes)
                whole = out.setdefault(name, np.zeros((len(structures), *shape)))
                for i, value in zip(index, np.asarray(values), strict=False):
                    cut = tuple(slice(sizes[a][i] if isinstance(a, str) else a) for a in axes)
                    whole[(i, *cut)] = value[cut]
        return out

    def doubt(self, predicted: Mapping[str, np.ndarray]) -> np.ndarray:
        """Root mean square standard deviation of F, ``(n_structures,)`` Hartree."""
        if not self.doubted:
            return super().doubt(predicted)
        squares = (predicted["fock_uncertainty"] ** 2).sum(axis=(1, 2))
        return np.sqrt(squares) / predicted["nao"]

    def with_limits(self, structures: Sequence[Structure]) -> Model:
        """With the largest ``nonlocality`` of the first structures that converge."""
        if not self.definition.config.judges_itself:
            return self
        with warnings.catch_warnings(action="ignore", category=DataWarning):
            found = self.predict(structures[:N_LIMITS], **self.tolerant)
        largest = np.max(found["nonlocality"], initial=0.0, where=np.isfinite(found["nonlocality"]))
        return dataclasses.replace(self, card={**self.card, "largest_nonlocality": float(largest)})

    def _unconverged(
        self, structures: list[Structure], predicted: Mapping[str, np.ndarray], allowed: bool
    ) -> None:
        """Say which densities did not become self-consistent, and why; an error unless allowed.

        Those that did and are none of a molecule have a residual of NaN from here on: a learned
        functional may have other solutions than the one that it was trained at.
        """
        failed, residual = self.failed(predicted), predicted["residual"]
        fock, overlap, dm = (
            cut_rows(k, predicted[k], predicted) for k in ("fock", "overlap", "dm")
        )
        nonlocality = predicted.get("nonlocality", np.zeros(len(structures)))
        wrong = {
            i
            for i in {*range(len(structures))} - {*failed.tolist()}
            if intruder(structures[i], fock[i], overlap[i])
            or far_from_local(nonlocality[i], self.card)
        }
        residual[list(wrong)] = np.nan
        failed = self.failed(predicted)
        if not len(failed):
            return
        faults = {
            i: fault_of(structures[i], fock[i], overlap[i], dm[i], self.card, nonlocality[i])
            for i in map(int, failed)
        }
        worst = int(failed[np.argmax(np.nan_to_num(residual[failed], nan=np.inf))])
        text = f"the density of {structures[worst]!r} (structure {name_of(worst)}) "
        if worst in wrong:
            text += f"is self-consistent and none of a molecule: {faults.pop(worst).text}."
        else:
            cycles = counted(self.definition.config.cycles, "cycle")
            text += f"did not become self-consistent: {faults.pop(worst).text}. "
            text += f"{residual[worst]:.1e} Hartree are left after {cycles}."
        if faults:
            text = f"{text} {len(faults)} more: {counted_by_kind(faults.values())}."
        if not allowed:
            raise ConvergenceError(
                f"{text} allow_unconverged has NaN for what fails and results for the rest."
            )
        warnings.warn(f"{text} Their results are NaN.", DataWarning, stacklevel=3)

    def warn_of_extrapolation(self, structures: Sequence[Structure]) -> None:
        """As of every model; pairs of elements never seen have a warning of their own."""
        warn_of_contacts(structures, self.card.get("closest_bohr", {}), unseen=False)
        warn_of_surroundings(structures, self.card.get("trained_for"))
        if unseen := self._unseen_pairs(structures):
            names = ", ".join(f"{symbol(a)}-{symbol(b)}" for a, b in unseen)
            warnings.warn(
                f"no molecule of the training set had the pairs {names}: nothing is learned for "
                "their blocks, which keep the kinetic and the electrostatic part only.",
                DataWarning,
                stacklevel=2,
            )

    def _unseen_pairs(self, structures: Sequence[Structure]) -> list[tuple[int, int]]:
        """Pairs of elements that have no learned part."""
        keys = (tuple(map(int, name.split("_"))) for name in self.params["guess"])
        learned = {(first, second) for kind, first, second, *_ in keys if kind}
        pairs = (itertools.combinations(sorted(n), 2) for n in {s.numbers for s in structures})
        return sorted(set().union(*pairs) - learned)


def check_closed_shells(
    name: str, structures: Sequence[Structure], error: type[OpmlError] = OpmlError
) -> None:
    """Refuse molecules with unpaired electrons, called ``name``, by an ``error``."""
    if odd := [s for s in structures if s.spin or s.n_electrons % 2]:
        raise error(name, got=repr(odd[0]), expected="closed shells", code=Code.ELECTRONS)


def _axes(name: str) -> tuple[Axis, ...]:
    """Axes of a result: lengths, and names of sizes; numbers of a molecule have none."""
    known = quantity(name)
    axes = () if known is None else known.axes
    return tuple(SIZES[a] if isinstance(a, str) else a for a in axes)


@functools.partial(Program, static_argnums=(0, 4, 5))
def _evaluate(
    definition: Op2Op,
    params: Params,
    structures: StructureBatch,
    table: SpeciesTable,
    polarizability: bool,
    uncertainty: bool,
) -> dict[str, Array]:
    out: dict[str, Any] = definition.apply(params, structures, table)
    observed = functools.partial(following_from, definition, structures, polarizability)
    following = observed(out.get("fock"), out["dm"])
    if uncertainty:
        changes = drawn_changes(definition, params, structures, table, out["dm"])
        out["fock_uncertainty"] = jnp.sqrt(jnp.mean(changes**2, axis=0))

        def squares(change: Array) -> dict[str, Array]:
            fock = out["fock"] + change
            changed = observed(fock, definition.density(structures, out["overlap"], fock))
            return {k: (changed[k] - v) ** 2 for k, v in following.items()}

        factors = params.get("calibration", {})
        for name, square in jax.lax.map(squares, changes).items():
            factor = factors.get("lowdin_charges" if name == "mulliken_charges" else name, 1.0)
            out[f"{name}_uncertainty"] = factor * jnp.sqrt(jnp.mean(square, axis=0))
    if definition.config.window != "lowest":  # without the electrons below its levels
        out["first_level"] = definition.first_level(structures)
    return {**out, **following}

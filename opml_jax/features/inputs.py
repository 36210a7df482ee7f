r"""Which operators a model reads, by name.

One potential V, whole or resolved by element, in a metric of choice, and other operators beside
it. Resolved by *charges*, :math:`V = \sum_Z V_Z` is the sum of the potentials of the nuclei of
each element; resolved by *intermediates*, :math:`V^2 = \sum_Z V P_Z V` with the projector on the
AOs of atoms of one element. Both say more than the sum (chemical species as channels), at the
price of more features.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax.numpy as jnp

from ..basis import AOLayout, Basis, BasisSpec
from ..errors import ConfigError, one_of
from ..numerics import Array
from ..operators import Operator, build, damped, lifted, lowdin, powers
from ..structures import Structure, StructureBatch
from ..structures.elements import symbol

OPERATORS = {
    "external_potential": build.external_potential,
    "screened_potential": build.screened_potential,
    "neutral_atom_potential": build.neutral_atom_potential,
    "overlap": build.overlap,
    "kinetic": build.kinetic,
}
"""Physical operators by name."""

OF_CHARGES = ("screened_potential", "external_potential")
"""Potentials that are linear in the charges of the nuclei, and take a field."""
METRICS = ("plain", "lowdin", "overlap", "lifted", "damped")
RESOLUTIONS = ("none", "charges", "intermediates")


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Operators by name for one molecule or a batch: static, hashable; call it.

    Attributes:
      operator: the potential V, or another of :data:`OPERATORS` in its place, to see what a model
        knows without V.
      metric: of the powers: ``"plain"`` V V, ``"overlap"`` V S^-1 V, ``"lowdin"``
        (S^-1/2 V S^-1/2)^2, these two for bases without near linear dependence; ``"lifted"``
        makes blocks of far pairs visible, ``"damped"`` makes them small, those of ``others`` too
        (:func:`opml_jax.operators.lifted`, :func:`opml_jax.operators.damped`).
      resolve: ``"none"``, ``"charges"`` or ``"intermediates"``.
      others: operators beside V that enter with their first power, such as ``("overlap",)``.
    """

    operator: str = "screened_potential"
    metric: str = "plain"
    resolve: str = "none"
    others: tuple[str, ...] = ()

    def __post_init__(self):
        one_of("operator", self.operator, OPERATORS)
        one_of("metric", self.metric, METRICS)
        one_of("resolve", self.resolve, RESOLUTIONS)
        for name in self.others:
            one_of("others", name, [k for k in OPERATORS if k != self.operator])
        if self.resolve == "charges" and self.operator not in OF_CHARGES:
            raise ConfigError(
                "resolve", got=f"'charges' of {self.operator}", expected=" or ".join(OF_CHARGES)
            )
        if self.resolve == "intermediates" and self.metric == "overlap":
            raise ConfigError(
                "resolve",
                got="'intermediates' in the overlap metric",
                expected="a metric in which an AO belongs to one atom: plain or lowdin",
            )

    def sources(self, spec: BasisSpec, exponents: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """What to pass to :class:`AtomFeatures` as ``powers``: names and their powers.

        Args:
          spec: the basis; its elements resolve V.
          exponents: the powers of V wanted.
        """
        exponents = tuple(exponents)
        pieces = [symbol(z) for z in spec.elements]
        if self.resolve == "intermediates" and 2 in exponents:
            rest = tuple(k for k in exponents if k != 2)
            named = {"V": rest} if rest else {}
            named |= {f"V[{s}]V": (1,) for s in pieces}
        elif self.metric == "overlap":
            named = {self._power(k): (1,) for k in exponents}
        else:
            named = {"V": exponents}
        if self.resolve == "charges":
            named |= {f"V_{s}": (1,) for s in pieces}
        return named | {name: (1,) for name in self.others}

    def gram(self, spec: BasisSpec, exponents: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """Which of :meth:`sources` enter scalar products: V to these powers, in all its pieces."""
        return {
            name: ks
            for name, ks in self.sources(spec, exponents).items()
            if name not in self.others
        }

    @staticmethod
    def _power(k: int) -> str:
        return "V" if k == 1 else f"(V^{k})"

    def __call__(
        self,
        structure: Structure | StructureBatch,
        basis: Basis,
        exponents: Sequence[int],
        *,
        field: Array | None = None,
    ) -> dict[str, Operator]:
        """The operators of :meth:`sources`.

        Args:
          structure: molecule or batch.
          basis: covers its elements.
          exponents: the powers of V wanted.
          field: ``(3,)`` uniform electric field in atomic units, added to V (+E.r for an electron).

        Raises:
          ConfigError: a field on what is no potential of charges.
        """
        names = self.sources(basis.spec, exponents)
        options = {} if field is None else {"field": field}
        if options and self.operator not in OF_CHARGES:
            raise ConfigError(
                "field", got=f"with {self.operator}", expected=" or ".join(OF_CHARGES)
            )
        potential = functools.partial(OPERATORS[self.operator], structure, basis)
        found = {name: OPERATORS[name](structure, basis) for name in self.others}
        by_distance = {"lifted": lifted, "damped": damped}
        s = None
        if self.metric in by_distance and "overlap" in found:
            s = found["overlap"]  # one overlap, so one gradient of it; padding belongs to no atom
        elif self.metric != "plain":
            s = build.overlap(structure, basis, padding=1.0)
        changed = {"lowdin": lowdin, **by_distance}.get(self.metric, lambda o, _: o)

        def change(o: Operator) -> Operator:
            return o if s is None else changed(o, s)

        v = potential(**options)
        if self.metric == "overlap":
            values = powers(v, tuple(exponents), metric="overlap", overlap=s)
            found |= {self._power(k): o for k, o in zip(exponents, values, strict=True)}
        else:
            found["V"] = v = change(v)
            if self.metric in by_distance:
                found |= {name: change(found[name]) for name in self.others}
        if self.resolve == "charges":
            numbers = jnp.asarray(structure.numbers)
            for z in basis.elements:
                own = potential(charges=jnp.where(numbers == z, numbers, 0))
                found[f"V_{symbol(z)}"] = change(own)
        if self.resolve == "intermediates":
            element = ao_element(v)
            for i, z in enumerate(basis.elements):
                mask = (element == i).astype(v.values.dtype)
                left = Operator(v.values * mask[..., None, :], v.layout)
                found[f"V[{symbol(z)}]V"] = left.multiply(v, symmetric=True)
        return {name: found[name] for name in names}


def ao_element(operator: Operator) -> Array:
    """``(..., nao)`` index of the element of each AO in the basis; -1 for padding."""
    layout = operator.layout
    if isinstance(layout, AOLayout):
        return jnp.asarray([layout.spec.element_index(layout.numbers[a]) for a in layout.atom])
    n_slots = layout.slots.shape[-1]
    atom = jnp.minimum(layout.ao_slot // n_slots, layout.element.shape[-1] - 1)
    own = jnp.take_along_axis(jnp.asarray(layout.element), atom, axis=-1)
    return jnp.where(layout.ao_mask, own, -1)

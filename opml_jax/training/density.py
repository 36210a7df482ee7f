r"""Closed form of Op2Density: weights of the kernels that make the error of densities least.

.. math::
    L(b) = \frac1N \sum_A (\Psi_A b + \bar c_A - c_A)^T M_A (\Psi_A b + \bar c_A - c_A)
    + \eta\, b^T b

(Grisafi, Lewis, Rossi, Ceriotti, arXiv:2206.14087). The columns of Psi are kernels between atoms
and reference environments in an orthonormal basis of the space that these span. Functions of one
atom overlap with those of another, so all weights are coupled, and the metrics M are ill
conditioned (1e9 for Coulomb's). The sum is minimised by conjugate gradients on products of Psi and
M alone; what makes them converge is that between functions of *one* atom M is known beforehand: the
same for all atoms of an element, diagonal in m. That part of the Hessian is a Kronecker product,
inverted through two small eigenproblems.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from .. import density
from ..basis import Basis, batch, from_pyscf, layout_of, load_basis
from ..data import Dataset
from ..data.reference import Method, density_of, molecule
from ..errors import DataError, refusal
from ..models.density import Op2Density, Params, atoms_of, channels, kernel, reduced
from ..structures import Structure
from .density_solver import Problem, Report, Solution, Weights, conjugate_gradients, factors

CHUNK = 16
"""Molecules at a time."""
NOISE = 1e-6
"""Channels whose spread is less, relative to the largest, are rounding."""
RANK = 1e-10
"""Eigenvalues of the kernel of references that are less, relative to the largest, are left out."""

_features = jax.jit(Op2Density.features, static_argnums=0)
_metric = jax.jit(density.metric_matrix, static_argnums=2)
_kernel = jax.jit(kernel, static_argnums=(0, 1))


@dataclasses.dataclass(frozen=True)
class Environments:
    """Atoms of one element in many molecules.

    Attributes:
      features: ``{l: (n, n_channels, 2 l + 1)}``.
      structure: ``(n,)`` molecule of each.
      places: ``{l: (n, n_radial, 2 l + 1)}`` functions of degree l among all of its molecule.
    """

    features: dict[int, np.ndarray]
    structure: np.ndarray
    places: dict[int, np.ndarray]


def places(definition: Op2Density, structures: Sequence[Structure]) -> dict[int, Environments]:
    """Environments without features: atoms of each element, and where their functions are."""
    found: dict[int, list] = {}
    for i, s in enumerate(structures):
        layout = layout_of(s, definition.aux_basis)
        for z, atoms in atoms_of(s.numbers).items():
            own = {l: channels(layout, atoms, l) for l in sorted(set(_ls_of(definition, z)))}
            found.setdefault(z, []).append((np.full(len(atoms), i), own))
    out = {}
    for z, rows in sorted(found.items()):
        structure, own = zip(*rows, strict=True)
        joined = {l: np.concatenate([p[l] for p in own]) for l in own[0]}
        out[z] = Environments({}, np.concatenate(structure), joined)
    return out


def environments(
    definition: Op2Density, structures: Sequence[Structure]
) -> dict[int, Environments]:
    """Features of all atoms, by element."""
    found: dict[int, list[dict[int, np.ndarray]]] = {}
    for start in range(0, len(structures), CHUNK):
        part = list(structures[start : start + CHUNK])
        filled = part + [part[-1]] * (min(CHUNK, len(structures)) - len(part))
        computed = _features(definition, batch(filled, definition.basis))
        features = {l: np.asarray(x) for l, x in computed.items()}
        for i, s in enumerate(part):
            for z, atoms in atoms_of(s.numbers).items():
                found.setdefault(z, []).append({l: x[i, atoms] for l, x in features.items()})
    return {
        z: dataclasses.replace(
            own, features={l: np.concatenate([f[l] for f in found[z]]) for l in found[z][0]}
        )
        for z, own in places(definition, structures).items()
    }


def principal_components(definition: Op2Density, features: dict[int, np.ndarray]) -> Params:
    """Components of one element's irreps, ``{l: {"matrix", "mean"}}``; squares sum to 1 in mean.

    For the Gaussian kernel channels are first brought to unit variance (scalars without their
    mean); for the polynomial one they are taken as they are, as its inventors do.
    """
    config, out = definition.config, {}
    for l, x in features.items():
        centred = x
        own: dict[str, np.ndarray] = {}
        scale = np.ones(x.shape[1])
        if config.kernel == "gaussian":
            if l == 0:
                own["mean"] = x.mean(axis=0)[:, 0]
                centred = x - own["mean"][:, None]
            spread = np.sqrt((centred**2).mean(axis=(0, 2)))
            scale = np.where(spread > NOISE * spread.max(), spread, np.inf)
        centred = centred / scale[:, None]
        values, vectors = np.linalg.eigh(np.einsum("iqm,ipm->qp", centred, centred) / len(x))
        kept = slice(None, -config.components - 1, -1)
        total = values.sum()
        matrix = vectors[:, kept] / scale[:, None] / np.sqrt(total if total > 0 else 1.0)
        out[str(l)] = {"matrix": matrix, **own}
    return out


def farthest_points(x: np.ndarray, n: int) -> np.ndarray:
    """Up to ``n`` rows of ``x``, each the farthest from those before; from the mean at first."""
    nearest = ((x - x.mean(axis=0)) ** 2).sum(axis=-1)
    chosen: list[int] = []
    for _ in range(min(n, len(x))):
        chosen.append(int(np.argmax(nearest)))
        own = ((x - x[chosen[-1]]) ** 2).sum(axis=-1)
        nearest = own if len(chosen) == 1 else np.minimum(nearest, own)
        if nearest.max() <= 1e-20:
            break
    return np.array(chosen)


def metrics(definition: Op2Density, structures: Sequence[Structure]) -> np.ndarray:
    """Metrics of the loss, ``(n_structures, naux, naux)``, padded by zeros; checked.

    Raises:
      OpmlError: one that is not positive definite.
    """
    metric = definition.config.metric
    found = [np.asarray(_metric(s, definition.aux_basis, metric)) for s in structures]
    naux = max(map(len, found))
    out = np.zeros((len(found), naux, naux))
    for i, (s, m) in enumerate(zip(structures, found, strict=True)):
        density.check_positive(m, f"the metric of structure {i}, {s!r},")
        out[i, : len(m), : len(m)] = m
    return out


def check_densities(definition: Op2Density, dataset: Dataset) -> Basis:
    """The orbital basis of a data set's matrices; refuses what has no density.

    Raises:
      DataError: neither density nor Fock matrices; ions.
      ConventionError: the basis is not said.
    """
    if "dm" not in dataset and "fock" not in dataset:
        raise DataError(
            refusal(
                "targets",
                got="density, of a data set without density matrices",
                expected="a data set with dm or fock",
                hint="opml generate writes them.",
            )
        )
    if ions := [s for s in dataset.structures if s.charge or s.spin]:
        raise DataError(
            refusal("structures", got=repr(ions[0]), expected="neutral closed-shell molecules")
        )
    name = Method.from_meta({"method": "hf", **dataset.meta}).basis
    return load_basis(name, dataset.elements)


def labelled_coefficients(
    definition: Op2Density, dataset: Dataset, on_progress: Report = lambda done, total, note: None
) -> list[np.ndarray]:
    """Coefficients of the density matrices of a data set, fitted in ``config.fit_metric``.

    Raises:
      DataError: as :func:`check_densities`.
      OpmlError: as :func:`opml_jax.density.fit`.
    """
    basis = check_densities(definition, dataset)
    aux, out = definition.aux_basis, []
    for i, s in enumerate(dataset.structures):
        dm = density_matrix(dataset, i, basis)
        out.append(np.asarray(density.fit(dm, s, basis, aux, definition.config.fit_metric)))
        on_progress(i + 1, len(dataset), "")
    return out


def density_matrix(dataset: Dataset, i: int, basis: Basis) -> np.ndarray:
    """``(nao, nao)`` of one structure: the label, or that of its Fock matrix."""
    if "dm" in dataset:
        return dataset.labels["dm"][i]
    s = dataset.structures[i]
    overlap = from_pyscf(molecule(s, basis.name).intor("int1e_ovlp"), s, basis)
    return density_of(dataset.labels["fock"][i], overlap, s)


def train_density(
    definition: Op2Density,
    dataset: Dataset,
    on_progress: Callable[[str, int, int, str], None] = lambda stage, done, total, note: None,
    **options: Any,
) -> tuple[Params, Solution]:
    """:func:`fit_density` to the density matrices of a data set."""
    coefficients = labelled_coefficients(
        definition, dataset, lambda *x: on_progress("density fitting", *x)
    )
    atoms = None
    if definition.config.baseline == "atoms":
        basis = check_densities(definition, dataset)
        atoms = {
            z: density.atomic_coefficients(z, basis, definition.aux_basis) for z in dataset.elements
        }
    return fit_density(
        definition, dataset.structures, coefficients, atoms, on_progress=on_progress, **options
    )


def fit_density(
    definition: Op2Density,
    structures: Sequence[Structure],
    coefficients: Sequence[np.ndarray],
    atoms: dict[int, np.ndarray] | None = None,
    *,
    found: dict[int, Environments] | None = None,
    on_progress: Callable[[str, int, int, str], None] = lambda stage, done, total, note: None,
    **options: Any,
) -> tuple[Params, Solution]:
    """Parameters of a model, by conjugate gradients.

    Args:
      definition: the model.
      structures: training set.
      coefficients: ``(naux,)`` for each, in the library's order.
      atoms: ``{Z: (naux,)}`` of free atoms (:func:`opml_jax.density.atomic_coefficients`), for the
        baseline ``"atoms"``.
      found: environments with other features than the model's own, if any.
      on_progress: called with (stage, done, total, note).
      options: ``state`` and ``fingerprint`` of :func:`conjugate_gradients`.

    Raises:
      DataError: coefficients that do not fit the molecules, or no free atoms.
      ConvergenceError: conjugate gradients did not reach ``config.tolerance``.
    """
    problem, bases = make_problem(
        definition, structures, coefficients, atoms, found=found, on_progress=on_progress
    )
    config = definition.config
    solution = conjugate_gradients(
        problem,
        tolerance=config.tolerance,
        cycles=config.cycles,
        on_progress=lambda *x: on_progress("conjugate gradients", *x),
        **options,
    )
    return parameters(bases, solution.weights), solution


def parameters(bases: dict[str, Params], weights: Weights) -> Params:
    """What prediction needs, from what :func:`make_problem` gives beside the problem."""
    out: Params = {}
    for z, own in bases.items():
        rows = {}
        for l, basis in own["bases"].items():
            w = basis @ weights[f"{z}_{l}"]
            rows[l] = np.ascontiguousarray(w.reshape(-1, 2 * int(l) + 1, w.shape[-1]))
        out[z] = {k: v for k, v in own.items() if k != "bases"} | {"weights": rows}
    return out


def make_problem(
    definition: Op2Density,
    structures: Sequence[Structure],
    coefficients: Sequence[np.ndarray],
    atoms: dict[int, np.ndarray] | None = None,
    *,
    found: dict[int, Environments] | None = None,
    on_progress: Callable[[str, int, int, str], None] = lambda stage, done, total, note: None,
) -> tuple[Problem, dict[str, Params]]:
    """The loss of a training set, and the parameters that do not depend on its minimum.

    Arguments as for :func:`fit_density`.
    """
    config = definition.config
    _check(definition, structures, coefficients, atoms)
    on_progress("features", 0, 1, "")
    found = environments(definition, structures) if found is None else found
    on_progress("features", 1, 1, "")
    on_progress("metrics", 0, 1, "")
    metric = metrics(definition, structures)
    on_progress("metrics", 1, 1, "")
    n, naux = metric.shape[:2]
    target = np.zeros((n, naux))
    for i, c in enumerate(coefficients):
        target[i, : len(c)] = c
    psi, places, inverses, bases = {}, {}, {}, {}
    for z, own in found.items():
        flat = {l: own.structure[:, None, None] * naux + p for l, p in own.places.items()}
        values = target.reshape(-1)[flat[0]][..., 0]  # (n_atoms, n)
        if config.baseline == "average":
            baseline = values.mean(axis=0)
        else:
            baseline = atoms[z][np.array(_ls_of(definition, z)) == 0]
        target.reshape(-1)[flat[0]] -= baseline[:, None]
        components = principal_components(definition, {l: own.features[l] for l in own.places})
        x = reduced(components, own.features, config.kernel)
        x = {l: np.asarray(v) for l, v in x.items()}
        chosen = farthest_points(x["0"][..., 0], config.references)
        references = {l: v[chosen] for l, v in x.items()}
        bases[str(z)] = {
            "baseline": baseline,
            "components": components,
            "references": references,
            "bases": {},
        }
        for l in own.places:
            key = f"{z}_{l}"
            k = np.asarray(_kernel(config, l, references, references))
            k = k.reshape(len(chosen) * k.shape[1], -1)
            values, vectors = np.linalg.eigh(0.5 * (k + k.T))
            kept = values > RANK * values[-1]
            basis = vectors[:, kept] / np.sqrt(values[kept])
            rows = np.asarray(_kernel(config, l, x, references))
            psi[key] = rows.reshape(*rows.shape[:2], -1) @ basis
            places[key] = flat[l].swapaxes(1, 2)
            at = own.places[l][0, :, 0]
            on_atom = metric[own.structure[0]][at[:, None], at]
            inverses[key] = factors(psi[key], on_atom, n, config.penalty)
            bases[str(z)]["bases"][str(l)] = basis
    return Problem(psi, places, metric, target, np.float64(config.penalty), inverses), bases


def _ls_of(definition: Op2Density, z: int) -> list[int]:
    """Angular momentum of every function of an element."""
    return [
        l
        for l in definition.aux_basis.spec.ls[definition.aux_basis.spec.element_index(z)]
        for _ in range(2 * l + 1)
    ]


def _check(definition, structures, coefficients, atoms) -> None:
    """Refuse a training set that does not fit the model.

    Raises:
      DataError: none, coefficients of another basis, or free atoms that are missing.
    """
    if not structures:
        raise DataError(refusal("structures", got="none", expected="at least one"))
    for i, (s, c) in enumerate(zip(structures, coefficients, strict=True)):
        naux = layout_of(s, definition.aux_basis).nao
        if np.shape(c) != (naux,) or not np.isfinite(c).all():
            raise DataError(
                refusal(
                    f"coefficients of structure {i}",
                    got=f"shape {np.shape(c)}" if np.shape(c) != (naux,) else "NaN",
                    expected=f"{naux} numbers, as {definition.aux_basis!r} has for {s!r}",
                )
            )
    elements = {z for s in structures for z in s.numbers}
    if definition.config.baseline == "atoms" and not elements <= set(atoms or {}):
        raise DataError(
            refusal(
                "atoms",
                got=f"elements {sorted(atoms or {})}",
                expected=f"coefficients of free atoms of {sorted(elements)}",
                hint="Or set density.baseline: average.",
            )
        )

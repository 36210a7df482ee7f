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
from ..errors import Code, DataError, OpmlError, refusal
from ..models.density import Op2Density, Params, atoms_of, channels, kernel, reduced
from ..structures import Structure
from .density_solver import Problem, Report, Solution, Weights, conjugate_gradients, factors
from .density_variance import variance_parameters

Progress = Callable[[str, int, int, str], None]
"""Called with (stage, done, total, note)."""


def silent(stage: str, done: int, total: int, note: str) -> None:
    """Report nothing."""


CHUNK = 16
"""Molecules at a time."""
NOISE = 1e-6
"""Channels whose spread is less, relative to the largest of their degree, say nothing."""
ROUNDING = 1e-12
"""And those less than this, relative to the largest of all degrees: they vanish identically."""
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

    def flat(self, naux: int) -> dict[int, np.ndarray]:
        """Places among the coefficients of all molecules, ``naux`` each, one after the other."""
        return {l: self.structure[:, None, None] * naux + p for l, p in self.places.items()}

    def on_atom(self, metric: np.ndarray, l: int) -> np.ndarray:
        """Metric ``(n_radial, n_radial)`` between functions of degree l of any of these atoms.

        Args:
          metric: ``(n_structures, naux, naux)``.
          l: degree; the metric is the same for every m, and zero between them.
        """
        at = self.places[l][0, :, 0]
        return metric[self.structure[0]][at[:, None], at]


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
    centred, spreads = dict(features), {}
    if config.kernel == "gaussian":
        mean = features[0].mean(axis=0)
        centred[0] = features[0] - mean
        spreads = {l: np.sqrt((x**2).mean(axis=(0, 2))) for l, x in centred.items()}
        largest = max(own.max() for own in spreads.values())
    for l, x in centred.items():
        scale = np.ones(x.shape[1])
        if l in spreads:
            least = max(NOISE * spreads[l].max(), ROUNDING * largest)
            scale = np.where(spreads[l] > least, spreads[l], np.inf)
        x = x / scale[:, None]
        values, vectors = np.linalg.eigh(np.einsum("iqm,ipm->qp", x, x) / len(x))
        kept = slice(None, -config.components - 1, -1)
        total = values.sum()
        matrix = vectors[:, kept] / scale[:, None] / np.sqrt(total if total > 0 else 1.0)
        out[str(l)] = {"matrix": matrix}
    if config.kernel == "gaussian":
        out["0"]["mean"] = mean[:, 0]
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
            ),
            code=Code.LABEL,
        )
    if ions := [s for s in dataset.structures if s.charge or s.spin]:
        raise DataError(
            refusal("structures", got=repr(ions[0]), expected="neutral closed-shell molecules"),
            code=Code.ELECTRONS,
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


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Molecules with all that a loss of densities needs of them.

    Attributes:
      metric: ``(n_structures, naux, naux)``, padded by zeros.
      target: ``(n_structures, naux)`` coefficients, padded likewise.
      found: their environments, by element.
      structures: the molecules, for losses of dipoles and on points.
    """

    metric: np.ndarray
    target: np.ndarray
    found: dict[int, Environments]
    structures: tuple[Structure, ...] = ()


def label(
    definition: Op2Density,
    structures: Sequence[Structure],
    coefficients: Sequence[np.ndarray],
    *,
    found: dict[int, Environments] | None = None,
    on_progress: Progress = silent,
) -> Labelled:
    """Environments and metrics of molecules; arguments as for :func:`fit_density`."""
    check_coefficients(definition, structures, coefficients)
    on_progress("features", 0, 1, "")
    found = environments(definition, structures) if found is None else found
    on_progress("features", 1, 1, "")
    on_progress("metrics", 0, 1, "")
    metric = metrics(definition, structures)
    on_progress("metrics", 1, 1, "")
    target = np.zeros(metric.shape[:2])
    for i, c in enumerate(coefficients):
        target[i, : len(c)] = c
    return Labelled(metric, target, found, tuple(structures))


def label_dataset(
    definition: Op2Density, dataset: Dataset, on_progress: Progress = silent
) -> Labelled:
    """:func:`label` with fits to the density matrices of a data set."""
    coefficients = labelled_coefficients(
        definition, dataset, lambda *x: on_progress("density fitting", *x)
    )
    return label(definition, dataset.structures, coefficients, on_progress=on_progress)


def free_atoms(definition: Op2Density, dataset: Dataset) -> dict[int, np.ndarray] | None:
    """Coefficients of free atoms for the baseline ``"atoms"``, in a data set's orbital basis."""
    if definition.config.baseline != "atoms":
        return None
    basis, aux = check_densities(definition, dataset), definition.aux_basis
    return {z: density.atomic_coefficients(z, basis, aux) for z in dataset.elements}


def train_density(
    definition: Op2Density, dataset: Dataset, on_progress: Progress = silent, **options: Any
) -> tuple[Params, Solution]:
    """:func:`fit_density` to the density matrices of a data set."""
    labelled = label_dataset(definition, dataset, on_progress)
    atoms = free_atoms(definition, dataset)
    problem, bases = problem_of(definition, labelled, atoms)
    return solve_problem(definition, problem, bases, on_progress, **options)


def fit_density(
    definition: Op2Density,
    structures: Sequence[Structure],
    coefficients: Sequence[np.ndarray],
    atoms: dict[int, np.ndarray] | None = None,
    *,
    found: dict[int, Environments] | None = None,
    on_progress: Progress = silent,
    **options: Any,
) -> tuple[Params, Solution]:
    """Parameters of a model's kernels, by conjugate gradients.

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
    return solve_problem(definition, problem, bases, on_progress, **options)


def solve_problem(
    definition: Op2Density,
    problem: Problem,
    bases: dict[str, Params],
    on_progress: Progress = silent,
    **options: Any,
) -> tuple[Params, Solution]:
    """Parameters of the minimum of what :func:`make_problem` gave, with variances if asked for."""
    config = definition.config
    solution = conjugate_gradients(
        problem,
        tolerance=config.tolerance,
        cycles=config.cycles,
        on_progress=lambda *x: on_progress("conjugate gradients", *x),
        **options,
    )
    params = parameters(bases, solution.weights)
    if config.uncertainty:
        on_progress("variances", 0, 1, "")
        found = variance_parameters(problem, bases, solution.weights)
        params = {z: {**own, "variance": found[z]} for z, own in params.items()}
        on_progress("variances", 1, 1, "")
    return params, solution


def left_over(definition: Op2Density, params: Params, labelled: Labelled) -> np.ndarray:
    """``(n_structures, naux)`` coefficients that a model leaves, before electrons are counted.

    Raises:
      OpmlError: a model whose functions have widths: its coefficients are of others.
    """
    if any("widths" in own.get("network", {}) for own in params.values()):
        raise OpmlError(
            refusal(
                "params",
                got="widths of functions",
                expected="a fixed basis, as the coefficients that are learned have",
                hint="opml_jax.density.without_widths gives coefficients of the basis.",
            )
        )
    left, naux = labelled.target.copy(), labelled.target.shape[1]
    of_element = jax.jit(definition.of_element)
    for z, own in labelled.found.items():
        found, flat = of_element(params[str(z)], own.features), own.flat(naux)
        for l, p in flat.items():
            if l in found:
                left.reshape(-1)[p] -= np.asarray(found[l])
    return left


def calibrated(
    definition: Op2Density, params: Params, validation: Labelled
) -> tuple[Params, float]:
    """Parameters whose variances are, in mean, the squared errors of a validation set.

    Returns:
      The parameters, and what their standard deviations were multiplied by.
    """
    error = left_over(definition, params, validation)
    errors = np.einsum("sp,spq,sq->", error, validation.metric, error)
    of_element = jax.jit(definition.variances_of_element)
    found = (of_element(params[str(z)], own.features) for z, own in validation.found.items())
    factor = float(np.sqrt(errors / sum(float(v.sum()) for v in found)))
    powers = {"basis": 0, "weights": 1, "prior": 2}
    out = {}
    for z, own in params.items():
        scaled = {
            l: {k: np.asarray(x * factor ** powers[k]) for k, x in v.items()}
            for l, v in own["variance"].items()
        }
        out[z] = {**own, "variance": scaled}
    return out, factor


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
    **options: Any,
) -> tuple[Problem, dict[str, Params]]:
    """The loss of a training set, and the parameters that do not depend on its minimum.

    Arguments as for :func:`fit_density`.
    """
    labelled = label(definition, structures, coefficients, **options)
    return problem_of(definition, labelled, atoms)


def problem_of(
    definition: Op2Density, labelled: Labelled, atoms: dict[int, np.ndarray] | None = None
) -> tuple[Problem, dict[str, Params]]:
    """As :func:`make_problem`, of molecules whose environments and metrics are known."""
    config, metric = definition.config, labelled.metric
    starts, target = subtract_baselines(definition, labelled, atoms)
    n, naux = target.shape
    psi, places, inverses, bases = {}, {}, {}, {}
    for z, own in labelled.found.items():
        start, flat = starts[str(z)], own.flat(naux)
        x = reduced(start["components"], own.features, config.kernel)
        x = {l: np.asarray(v) for l, v in x.items()}
        chosen = farthest_points(x["0"][..., 0], config.references)
        references = {l: v[chosen] for l, v in x.items()}
        bases[str(z)] = {**start, "references": references, "bases": {}}
        for l in own.places:
            key = f"{z}_{l}"
            k = np.asarray(_kernel(config, l, references, references))
            k = k.reshape(len(chosen) * k.shape[1], -1)
            values, vectors = np.linalg.eigh(0.5 * (k + k.T))
            kept = values > RANK * values[-1]
            if not kept.any():
                continue  # irreps that vanish identically
            basis = vectors[:, kept] / np.sqrt(values[kept])
            rows = np.asarray(_kernel(config, l, x, references))
            psi[key] = rows.reshape(*rows.shape[:2], -1) @ basis
            places[key] = flat[l].swapaxes(1, 2)
            inverses[key] = factors(psi[key], own.on_atom(metric, l), n, config.penalty)
            bases[str(z)]["bases"][str(l)] = basis
    return Problem(psi, places, metric, target, np.float64(config.penalty), inverses), bases


def subtract_baselines(
    definition: Op2Density, labelled: Labelled, atoms: dict[int, np.ndarray] | None = None
) -> tuple[dict[str, Params], np.ndarray]:
    """Baseline and components of every element, which nothing is solved for, and what is left.

    Arguments as for :func:`problem_of`.

    Returns:
      ``{element: {"baseline", "components"}}``, and ``(n_structures, naux)`` coefficients less
      their baseline.

    Raises:
      DataError: free atoms that are missing.
    """
    _check_atoms(definition, labelled, atoms)
    target, starts = labelled.target.copy(), {}
    for z, own in labelled.found.items():
        isotropic = own.flat(target.shape[1])[0]
        if definition.config.baseline == "average":
            baseline = target.reshape(-1)[isotropic][..., 0].mean(axis=0)
        else:
            assert atoms is not None  # or they were refused
            baseline = atoms[z][np.array(_ls_of(definition, z)) == 0]
        target.reshape(-1)[isotropic] -= baseline[:, None]
        components = principal_components(definition, {l: own.features[l] for l in own.places})
        starts[str(z)] = {"baseline": baseline, "components": components}
    return starts, target


def _ls_of(definition: Op2Density, z: int) -> list[int]:
    """Angular momentum of every function of an element."""
    return [
        l
        for l in definition.aux_basis.spec.ls[definition.aux_basis.spec.element_index(z)]
        for _ in range(2 * l + 1)
    ]


def check_coefficients(definition, structures, coefficients) -> None:
    """Refuse a training set that does not fit the model.

    Raises:
      DataError: none, or coefficients of another basis.
    """
    if not structures:
        raise DataError(refusal("structures", got="none", expected="at least one"), code=Code.EMPTY)
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


def _check_atoms(definition, labelled, atoms) -> None:
    """Refuse free atoms that are missing."""
    if definition.config.baseline == "atoms" and not set(labelled.found) <= set(atoms or {}):
        raise DataError(
            refusal(
                "atoms",
                got=f"elements {sorted(atoms or {})}",
                expected=f"coefficients of free atoms of {sorted(labelled.found)}",
                hint="Or set density.baseline: average.",
            )
        )

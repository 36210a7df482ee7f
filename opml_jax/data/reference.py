"""Reference labels from PySCF: converged or refused, with everything needed to repeat them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import scipy.linalg

from ..basis import Basis, check_widths, from_pyscf, layout_of, load_basis, to_pyscf
from ..conventions import CONVENTION
from ..errors import Code, ConventionError, ConvergenceError, OpmlError, counted, nearest
from ..quantities import N_ITERATES, iterate
from ..structures import Structure, centre_of_nuclear_charge, centred
from ..structures.elements import symbol
from .dataset import Dataset
from .functionals import check_dispersion, functional_of, same_functional, warn_if_two

KEPT_BYTES = 2**30
"""Values of orbitals on a grid that are kept while an SCF converges, at most."""


@dataclasses.dataclass(frozen=True)
class Method:
    """A level of theory: restricted Hartree-Fock or Kohn-Sham in a Gaussian basis.

    Attributes:
      method: ``"hf"`` or an exchange-correlation functional PySCF knows (``"pbe"``).
      basis: basis set name.
      grid_level: PySCF's integration grid, 0 to 9. Orbital energies of water depend on the
        orientation of the grid by 1e-7 Ha at level 3 and 6e-9 Ha at level 5.
      conv_tol: convergence of the energy, Hartree.
      max_cycle: SCF cycles before the next attempt of the ladder.
      forces: whether labels have forces, which take as long as the rest of the calculation.
      density_fit: whether the Coulomb (and exchange) matrix is made by density fitting, in PySCF's
        auxiliary basis for the orbital basis; several times faster in large bases.
      iterates: of how many first cycles of the SCF, from PySCF's guess, labels have the density
        matrix and its Fock matrix; they teach a functional what densities on the way need.
    """

    method: str = "pbe"
    basis: str = "def2-svp"
    grid_level: int = 4
    conv_tol: float = 1e-10
    max_cycle: int = 60
    forces: bool = True
    density_fit: bool = False
    iterates: int = 0

    def __post_init__(self):
        from pyscf.dft import libxc

        if not 0 <= self.grid_level <= 9:
            raise OpmlError("grid_level", got=self.grid_level, expected="from 0 to 9")
        if not self.conv_tol > 0:
            raise OpmlError("conv_tol", got=self.conv_tol, expected="positive")
        if self.max_cycle < 1:
            raise OpmlError("max_cycle", got=self.max_cycle, expected="at least 1")
        if not 0 <= self.iterates <= N_ITERATES:
            raise OpmlError("iterates", got=self.iterates, expected=f"from 0 to {N_ITERATES}")
        if self.method.lower() != "hf":
            try:
                if not self.method.strip():
                    raise ValueError("no functional")
                with contextlib.redirect_stderr(None):
                    parsed = libxc.parse_xc(self.method)
            except Exception as err:  # PySCF raises KeyError, ValueError or RuntimeError
                known = ["hf", "pbe", "pbe0", "b3lyp", "blyp", "lda,vwn", "scan", "r2scan", "tpss"]
                raise OpmlError(
                    "method",
                    got=repr(self.method),
                    expected="'hf' or a functional",
                    hint=nearest(self.method, known),
                ) from err
            explicit = functional_of(self.method, version("pyscf"))
            if parsed != libxc.parse_xc(explicit):
                raise OpmlError(
                    "method",
                    got=f"{self.method!r}, which B3LYP_WITH_VWN5 of pyscf_conf.py changes",
                    expected=f"a name that means one functional, such as {explicit!r}",
                )

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any], **given: Any) -> Method:
        """The level of theory that meta data of a data set tell.

        Args:
          meta: ``Dataset.meta``. Settings of the calculation that are not in it have their
            defaults; method and basis must be there, or given.
          given: what is known otherwise, and taken instead.

        A functional whose name means another one in this version of PySCF has the name that
        :func:`functional_of` gives; where the version is not known there is a warning.

        Raises:
          ConventionError: no method or basis, or a value of another kind.
          OpmlError: a functional that is not known.
        """
        kinds = {f.name: type(f.default) for f in dataclasses.fields(cls)}
        found = {k: v for k, v in {**meta, **given}.items() if k in kinds}
        for name in ("method", "basis"):
            if name not in found:
                where, expected = f"{name} of the data set", "in its meta data"
                raise ConventionError(
                    where, got="none", expected=expected, code=Code.LEVEL_OF_THEORY
                )
        for name, value in found.items():
            kind = (float, int) if kinds[name] is float else kinds[name]
            if not isinstance(value, kind):
                expected = f"of type {kinds[name].__name__}"
                where = f"{name} of the data set"
                raise ConventionError(
                    where, got=repr(value), expected=expected, code=Code.LEVEL_OF_THEORY
                )
        if "method" not in given:
            then = functional_of(found["method"], meta.get("pyscf_version"))
            warn_if_two(then)
            if functional_of(then, version("pyscf")) != functional_of(
                found["method"], version("pyscf")
            ):
                found["method"] = then  # its name means another one here
        return cls(**found)

    @property
    def is_hf(self) -> bool:
        """True for Hartree-Fock."""
        return self.method.lower() == "hf"

    def meta(self) -> dict[str, Any]:
        """What a data file says about the level of theory."""
        return {
            **dataclasses.asdict(self),
            "convention": CONVENTION,
            "reference": "RHF" if self.is_hf else "RKS",
            "grid_response": self.forces and not self.is_hf,
            "pyscf_version": version("pyscf"),
            "opml_jax_version": version("opml_jax"),
            "units": "atomic units (Hartree, Bohr, e)",
        }


def other_setting(meta: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Which setting of the level of theory differs in meta data of two data sets; empty: none.

    How many cycles an SCF may take is no part of the level. Settings that are not stated have
    their defaults, if method and basis are.

    Raises:
      ConventionError: as of :meth:`Method.from_meta`.
    """
    stated = all({"method", "basis"} <= m.keys() for m in (meta, other))
    levels = [dataclasses.asdict(Method.from_meta(m)) if stated else m for m in (meta, other)]
    names = (f.name for f in dataclasses.fields(Method))
    same = {k: levels[0].get(k) == levels[1].get(k) for k in names}
    if stated:
        same["method"] = same_functional(meta, other)
    return next((k for k in same if not same[k] and k != "max_cycle"), "")


def record_id(structure: Structure, method: Method) -> str:
    """Hash of a geometry and a level of theory: the name under which a label is kept."""
    level = dataclasses.asdict(method) | {"max_cycle": Method.max_cycle}  # no part of the level
    for option in ("density_fit", "iterates"):  # files from before they were options stay valid
        if not level[option]:
            del level[option]
    text = json.dumps([structure.numbers, structure.charge, structure.spin, level])
    digest = hashlib.sha256(text.encode())
    digest.update(np.round(np.asarray(structure.positions, np.float64), 10).tobytes())
    return digest.hexdigest()[:20]


def molecule(structure: Structure, basis: str | Basis, widths: np.ndarray | None = None):
    """``pyscf.gto.Mole`` of a structure, in Bohr.

    Args:
      structure: molecule.
      basis: name PySCF knows, or a basis (orbital or auxiliary) of this library.
      widths: ``(n_shells,)`` factors of its exponents (atoms are then labelled, ``O1 H2 H3``, and
        each has its own), or None.

    Raises:
      BasisError: an element the basis lacks or treats with an ECP.
    """
    from pyscf import gto

    symbols = structure.symbols
    if widths is not None and not isinstance(basis, Basis):
        basis = load_basis(basis, structure.numbers)
    if isinstance(basis, Basis) and widths is not None:
        check_widths(layout_of(structure, basis), widths)
        symbols = [f"{s}{i + 1}" for i, s in enumerate(symbols)]
        own, given = iter(np.asarray(widths).tolist()), {}
        for name, z in zip(symbols, structure.numbers, strict=True):
            tables = [
                (s.l, s.exponents * next(own), s.coefficients) for s in basis.element_shells(z)
            ]
            given[name] = [[l, *np.stack(table, axis=1).tolist()] for l, *table in tables]
    elif isinstance(basis, Basis):
        given = {
            symbol(z): [
                [s.l, *np.stack([s.exponents, s.coefficients], axis=1).tolist()]
                for s in basis.element_shells(z)
            ]
            for z in set(structure.numbers)
        }
    else:
        load_basis(basis, structure.numbers)
        given = basis
    return gto.M(
        atom=list(zip(symbols, np.asarray(structure.positions).tolist(), strict=True)),
        unit="Bohr",
        basis=given,
        charge=structure.charge,
        spin=structure.spin,
        verbose=0,
    )


def cross_overlap(structure: Structure, rows: Basis, columns: Basis) -> np.ndarray:
    """Overlap of the functions of two bases of PySCF's library.

    Returns:
      ``(nao_rows, nao_columns)``, each in the library's AO order.
    """
    from pyscf import gto

    mols = [molecule(structure, basis.name) for basis in (rows, columns)]
    order = [layout_of(structure, basis).from_pyscf_index for basis in (rows, columns)]
    return gto.intor_cross("int1e_ovlp", *mols)[np.ix_(*order)]


def atomic_density(z: int, basis: Basis) -> np.ndarray:
    """Density matrix of a free atom, a spherical average of restricted Hartree-Fock.

    Args:
      z: atomic number.
      basis: covers it.

    Returns:
      ``(nao, nao)`` in the library's AO order, as many electrons as the nucleus has charges.
    """
    from pyscf import scf

    atom = Structure([z], [[0.0, 0.0, 0.0]], spin=z % 2)
    dm = scf.hf.init_guess_by_atom(molecule(atom, basis))
    return from_pyscf(np.asarray(dm), atom, basis)


def atomic_densities(basis: Basis) -> dict[str, np.ndarray]:
    """:func:`atomic_density` of every element, by atomic number as text."""
    return {str(z): atomic_density(z, basis) for z in basis.elements}


def density_of(fock: np.ndarray, overlap: np.ndarray, structure: Structure) -> np.ndarray:
    """Closed-shell density matrix ``(nao, nao)`` of a Fock matrix."""
    _, c = scipy.linalg.eigh(fock, overlap)
    occupied = c[:, : (sum(structure.numbers) - structure.charge) // 2]
    return 2 * occupied @ occupied.T


def observables_of(structure: Structure, fock: np.ndarray, basis: Basis) -> dict[str, np.ndarray]:
    """What follows from a Fock matrix, by libcint and NumPy.

    :mod:`opml_jax.observables` would be compiled anew for every molecule of a data set.

    Args:
      structure: closed-shell molecule.
      fock: ``(nao, nao)`` Hartree, the library's AO order.
      basis: of PySCF's library.

    Returns:
      ``mo_energy`` ``(nao,)`` Hartree, ``dipole`` ``(3,)`` e Bohr about the centre of nuclear
      charge, ``lowdin_charges`` ``(n_atoms,)``.
    """
    mol, layout = molecule(centred(structure), basis.name), layout_of(structure, basis)
    overlap = np.asarray(from_pyscf(mol.intor("int1e_ovlp"), structure, basis))
    position = from_pyscf(mol.intor("int1e_r"), structure, basis)
    dm = density_of(fock, overlap, structure)
    root = scipy.linalg.sqrtm(overlap).real
    populations = np.bincount(layout.atom, np.einsum("ij,jk,ki->i", root, dm, root))
    return {
        "mo_energy": scipy.linalg.eigh(fock, overlap, eigvals_only=True),
        "dipole": -np.einsum("xij,ji->x", position, dm),
        "lowdin_charges": np.array(structure.numbers) - populations,
    }


def reference_observables(
    dataset: Dataset, names: Sequence[str] = ("mo_energy", "dipole", "lowdin_charges")
) -> dict[str, list[np.ndarray]]:
    """Observables of the Fock matrices of a data set, in the basis they are in.

    Args:
      dataset: closed shells with ``fock``; ``meta`` names the basis.
      names: which of those of :func:`observables_of`, and ``polarizability``, which is a label:
        those of independent electrons are no reference.

    Returns:
      ``{name: [array, ...]}``: ``mo_energy`` ``(nao,)`` Hartree, ``dipole`` ``(3,)`` e Bohr about
      the centre of nuclear charge, ``lowdin_charges`` ``(n_atoms,)``, ``polarizability`` ``(3, 3)``
      Bohr^3.

    Raises:
      ConventionError: matrices that are not in this basis.
    """
    basis = load_basis(dataset.meta["basis"], dataset.elements)
    dataset.check_layout(basis)
    rows = [
        observables_of(structure, np.asarray(dataset.labels["fock"][i]), basis)
        for i, structure in enumerate(dataset.structures)
    ]
    out = {name: [row[name] for row in rows] for name in names if name != "polarizability"}
    if "polarizability" in names:
        out["polarizability"] = list(dataset.labels["polarizability"])
    return out


def mean_field(structure: Structure, method: Method):
    """An unconverged PySCF RHF or RKS object.

    Raises:
      OpmlError: an open shell; a method with a dispersion that PySCF cannot add here.
    """
    from pyscf import dft, scf

    check_dispersion(method.method)
    if structure.spin:
        raise OpmlError(
            "spin",
            got=structure.spin,
            expected="0: labels are closed shell for now",
            code=Code.ELECTRONS,
        )
    mol = molecule(structure, method.basis)
    if method.is_hf:
        mf = scf.RHF(mol)
    else:
        mf = dft.RKS(mol, xc=method.method)
        mf.grids.level = method.grid_level
        mf._numint = _integrator()()
    if method.density_fit:
        mf = mf.density_fit()
        mf.with_df.build()  # or PySCF makes the integrals anew in every cycle: twice as slow
    mf.conv_tol = method.conv_tol
    mf.conv_tol_grad = method.conv_tol**0.5
    mf.max_cycle = method.max_cycle
    return mf


@functools.cache
def _integrator() -> type:
    """PySCF's integration on grids, which keeps values of orbitals from cycle to cycle.

    They are a third of the time of a cycle. More than :data:`KEPT_BYTES` are evaluated each time.
    """
    from pyscf.dft.numint import NumInt

    class Kept(NumInt):
        def block_loop(self, mol, grids, nao=None, deriv=0, max_memory=2000, *args, **options):
            blocks = super().block_loop(mol, grids, nao, deriv, max_memory, *args, **options)
            n_values = (deriv + 1) * (deriv + 2) * (deriv + 3) // 6
            numbers = 0 if grids.coords is None else grids.coords.shape[0] * mol.nao * n_values
            once = deriv > 1 or args or options  # forces and Hessians, which no cycle repeats
            if once or not 0 < 8 * numbers <= KEPT_BYTES:
                return blocks
            of = (deriv, id(mol), id(grids.coords))
            if getattr(self, "_of", None) != of:
                self._blocks = [(ao.copy(order="K"), *others) for ao, *others in blocks]
                self._of, self._alive = of, (mol, grids.coords)  # whose addresses stay theirs
            return self._blocks

    return Kept


def converge(mf, guess: np.ndarray | None = None):
    """Run an SCF through a ladder of attempts: plain, level shift, second order.

    Args:
      mf: a PySCF mean-field object.
      guess: density matrix ``(nao, nao)`` to begin with, PySCF's AO order. Default: PySCF's guess.

    Returns:
      ``(mf, attempt)``, the converged object (free of any level shift) and what it took.

    Raises:
      ConvergenceError: every attempt failed.
    """
    mf.kernel(dm0=guess)
    if mf.converged:
        return mf, "plain"
    mf.level_shift, mf.damp = 0.3, 0.0
    mf.kernel(dm0=mf.make_rdm1())
    mf.level_shift = 0.0
    mf.kernel(dm0=mf.make_rdm1())
    if mf.converged:
        return mf, "level shift"
    newton = mf.newton()
    newton.max_cycle = 50
    newton.kernel(dm0=mf.make_rdm1())
    if newton.converged:
        mf.kernel(dm0=newton.make_rdm1())  # hand the orbitals back to the plain object
        if mf.converged:
            return mf, "second order"
    raise ConvergenceError(
        f"the SCF of {counted(mf.mol.natm, 'atom')} did not converge in {mf.max_cycle} cycles, "
        "with a level shift, or with the second-order solver. Check the geometry, charge and spin."
    )


def calculate(structure: Structure, method: Method) -> dict[str, np.ndarray | np.float64]:
    """Energy, forces, dipole and operators of one molecule.

    Forces include the response of the integration grid, so they are the derivative of the
    energy as computed.

    Returns:
      Energy, forces (if asked for), dipole and every AO quantity of
      :data:`opml_jax.quantities.LABELS`, atomic units, the library's AO order; the dipole about
      the coordinate origin. There are fewer levels than AOs where PySCF dropped nearly linearly
      dependent ones (eigenvalues of the overlap below 1e-6).

    Raises:
      ConvergenceError: the SCF did not converge.
      BasisError: an element without an all-electron basis of that name.
    """
    mf = mean_field(structure, method)
    begun = []

    def keep(cycle: dict[str, Any]) -> None:
        if len(begun) < method.iterates:
            begun.append((cycle["dm"], cycle["fock"]))

    mf.callback = keep
    mf, _ = converge(mf)
    mol = mf.mol
    dm = mf.make_rdm1()
    basis = load_basis(method.basis, structure.numbers)
    matrices = {
        "fock": mf.get_fock(dm=dm),
        "dm": dm,
        "overlap": mol.intor("int1e_ovlp"),
        "kinetic": mol.intor("int1e_kin"),
        "external_potential": mol.intor("int1e_nuc"),
    }
    for i in range(method.iterates):  # the last one again where there were fewer
        pair = begun[min(i, len(begun) - 1)]
        matrices |= {iterate("dm", i + 1): pair[0], iterate("fock", i + 1): pair[1]}
    nuclear = np.asarray(structure.numbers) @ np.asarray(structure.positions)
    electronic = np.einsum("xij,ji->x", mol.intor("int1e_r"), dm)
    forces = {}
    if method.forces:
        gradient = mf.nuc_grad_method()
        gradient.verbose = 0
        if not method.is_hf:
            gradient.grid_response = True
        forces = {"forces": -gradient.kernel()}
    return {
        "energy": np.float64(mf.e_tot),
        **forces,
        "dipole": nuclear - electronic,
        "mo_energy": mf.mo_energy,
        "mo_occ": mf.mo_occ,
        **{k: from_pyscf(np.asarray(v), structure, basis) for k, v in matrices.items()},
    }


def fock_deviation(structure: Structure, fock: np.ndarray, method: Method) -> np.ndarray:
    """What the Fock matrix of the density of a Fock matrix differs from it: 0 if it is converged.

    Args:
      structure: closed-shell molecule.
      fock: ``(nao, nao)`` Hartree, the library's AO order, of an SCF.
      method: level of theory; PySCF calculates.

    Returns:
      ``(nao, nao)`` Hartree, PySCF's AO order.

    Raises:
      ConventionError: a matrix in another basis.
    """
    mf = mean_field(structure, method)
    matrix = to_pyscf(np.asarray(fock), structure, load_basis(method.basis, structure.numbers))
    levels, orbitals = mf.eig(matrix, mf.get_ovlp())
    return mf.get_fock(dm=mf.make_rdm1(orbitals, mf.get_occ(levels, orbitals))) - matrix


def polarizability(structure: Structure, method: Method, *, step: float = 2e-3) -> np.ndarray:
    """Static polarizability by central differences of dipoles in a field, ``(3, 3)`` Bohr^3.

    Args:
      structure: closed-shell molecule.
      method: level of theory; ``conv_tol`` should be 1e-10 or less.
      step: of the field, Hartree/(e Bohr); what differences leave is of its second order.

    Raises:
      ConvergenceError: the SCF did not converge.
    """
    out = []
    for axis in range(3):
        dipoles = []
        for field in (step, -step):
            mf = mean_field(structure, method)
            with mf.mol.with_common_orig(centre_of_nuclear_charge(structure)):
                r = mf.mol.intor("int1e_r")
            hcore = mf.get_hcore() + field * r[axis]
            mf.get_hcore = lambda *_, h=hcore: h
            mf, _ = converge(mf)
            dipoles.append(-np.einsum("xij,ji->x", r, mf.make_rdm1()))
        out.append((dipoles[0] - dipoles[1]) / (2 * step))
    return np.array(out)

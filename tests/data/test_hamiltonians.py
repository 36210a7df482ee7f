"""Hamiltonian data sets of other programs, written here from PySCF as their authors write them."""

import base64
import sqlite3

import ase
import numpy as np
import pytest
from ase.db import connect
from pyscf import gto, scf

import opml_jax as opml
from opml_jax.basis import layout_of
from opml_jax.cli.runs import load_data
from opml_jax.conventions import component_order, diagnose, diagnose_fock, from_convention
from opml_jax.data.matrices import check_matrices
from opml_jax.errors import ConventionError, DataError, DataWarning, UnitWarning
from opml_jax.training.config import DataConfig
from opml_jax.units import ANGSTROM_PER_BOHR, EV_PER_HARTREE

EXACT = 1e-12  # permutations of doubles
SINGLE = 2e-6  # matrix elements up to 20 in float32

COMPONENTS = {  # PySCF's names of the components, in the order of each program
    "opml": (("",), ("y", "z", "x"), ("xy", "yz", "z^2", "xz", "x2-y2")),
    "pyscf": (("",), ("x", "y", "z"), ("xy", "yz", "z^2", "xz", "x2-y2")),
    "orca": (("",), ("z", "x", "y"), ("z^2", "xz", "yz", "x2-y2", "xy")),
}


class Calculated:
    """RHF/def2-SVP of a molecule: its matrices as PySCF has them, and by the names of AOs."""

    def __init__(self, symbols, angstrom):
        self.atoms = ase.Atoms(symbols, angstrom)
        atom = list(zip(symbols, np.asarray(angstrom).tolist(), strict=True))
        self.mol = gto.M(atom=atom, basis="def2-svp", verbose=0)
        mf = scf.RHF(self.mol).run(conv_tol=1e-10)
        self.energy = mf.e_tot
        self.matrices = {"fock": mf.get_fock(), "overlap": mf.get_ovlp(), "dm": mf.make_rdm1()}

    def stored(self, name, program):
        """The matrix as ``program`` would store it, its AOs found by their names."""
        labels = [(a, shell) for a, _, shell, _ in self.mol.ao_labels(fmt=None)]
        names = self.mol.ao_labels(fmt=None)
        index, seen = [], []
        for atom, shell in labels:
            if (atom, shell) in seen:
                continue
            seen.append((atom, shell))
            l = "spd".index(shell[-1])
            index += [
                next(i for i, (a, _, s, m) in enumerate(names) if (a, s, m) == (atom, shell, c))
                for c in COMPONENTS[program][l]
            ]
        return np.ascontiguousarray(self.matrices[name][np.ix_(index, index)])


@pytest.fixture(scope="module")
def waters():
    start = np.array([[0.01, -0.02, 0.118], [0.02, 0.771, -0.462], [-0.03, -0.748, -0.479]])
    rng = np.random.default_rng(3)
    turned = [np.linalg.qr(rng.normal(size=(3, 3)))[0] for _ in range(3)]
    return [Calculated("OHH", start @ r + 0.02 * rng.normal(size=(3, 3))) for r in turned]


@pytest.fixture(scope="module")
def mixed(waters):
    ammonia = [[0, 0, 0.12], [0.02, 0.94, -0.27], [0.81, -0.47, -0.27], [-0.81, -0.47, -0.25]]
    return [*waters[:2], Calculated("NHHH", ammonia)]


def _write_npz(path, molecules, program, names=("fock",), **more):
    arrays = {n: np.array([m.stored(n, program) for m in molecules]) for n in names}
    np.savez(
        path,
        R=np.array([m.atoms.positions for m in molecules]),
        Z=molecules[0].atoms.numbers,
        E=np.array([m.energy for m in molecules]),
        **{{"fock": "F", "overlap": "S", "dm": "P"}[k]: v for k, v in arrays.items()},
        **more,
    )
    return path


def _same(dataset, molecules, names, atol=EXACT):
    for name in names:
        for found, m in zip(dataset.labels[name], molecules, strict=True):
            np.testing.assert_allclose(found, m.stored(name, "opml"), rtol=0, atol=atol)
    basis = opml.load_basis("def2-svp", dataset.elements)
    assert len(dataset.layout_hashes) == len(molecules)
    dataset.check_layout(basis)
    assert check_matrices(dataset.structures, dataset.labels, basis) == "agrees"


@pytest.mark.parametrize("program", COMPONENTS)
@pytest.mark.parametrize("names", [("fock",), ("fock", "overlap", "dm")])
def test_npz_in_every_order(waters, tmp_path, program, names):
    path = _write_npz(tmp_path / "w.npz", waters, program, names)
    options = {"basis": "def2-svp", "energy_unit": "hartree"}
    found = opml.read_dataset(path, convention=program, **options)
    _same(found, waters, names)
    np.testing.assert_allclose(found["energy"], [m.energy for m in waters])
    assert found.meta["order_in_file"] == program
    # not stated, and wrongly stated: the order is named
    for wrong in (None, *(set(COMPONENTS) - {program})):
        with pytest.raises(ConventionError) as caught:
            opml.read_dataset(path, convention=wrong, **options)
        says = str(caught.value)
        assert f"Pass convention='{program}'" in says
        assert f"({', '.join(COMPONENTS[program][1])})" in says
        assert "\n" not in says
    with pytest.raises(ConventionError, match="Did you mean 'pyscf'"):
        opml.read_dataset(path, convention="pysfc", **options)


def test_a_file_may_state_its_basis_and_order(waters, tmp_path):
    path = _write_npz(tmp_path / "w.npz", waters, "pyscf", basis="def2-svp", convention="pyscf")
    _same(opml.read_dataset(path, energy_unit="hartree"), waters, ("fock",))
    config = DataConfig(str(path), n_train=1, n_validation=1, energy_unit="hartree", limit=3)
    dataset, splits = load_data(config)
    assert len(dataset["fock"]) == 3
    assert sum(map(len, splits.values())) == 3


def test_matrices_of_an_unknown_basis_are_left_unread(waters, tmp_path):
    path = _write_npz(tmp_path / "w.npz", waters, "pyscf")
    with pytest.warns(DataWarning, match="the basis is not known"):
        found = opml.read_dataset(path, energy_unit="hartree")
    assert list(found.labels) == ["energy"]
    with pytest.warns(UnitWarning, match="hartree"):
        opml.read_dataset(path, basis="def2-svp", convention="pyscf")
    labels = {"energy": ("E", "hartree")}
    found = opml.read_dataset(path, labels=labels, basis="def2-svp", convention="pyscf", limit=2)
    _same(found, waters[:2], ("fock",))
    only = _write_npz(tmp_path / "p.npz", waters, "pyscf", ("dm",))
    with pytest.raises(ConventionError, match="do not show it"):
        opml.read_dataset(only, energy_unit="hartree", basis="def2-svp")


def _in_ev(f):
    return EV_PER_HARTREE * f


def _with_nan(f):
    return np.where(np.eye(len(f)), np.nan, f)


@pytest.mark.parametrize(
    ("change", "options", "says"),
    [
        (_in_ev, {}, ["in Hartree", "They fit ev"]),
        (_with_nan, {}, ["fock[0]", "NaN"]),
        (np.triu, {}, ["fock[0]", "symmetric"]),
        (lambda f: f[:-1, :-1], {}, ["(23, 23)", "(24, 24)", "basis"]),
        (lambda f: f, {"basis": "sto-3g"}, ["(7, 7)", "(24, 24)"]),
        (lambda f: f, {"basis": "6-31g**"}, ["not known", "another basis"]),
        (lambda f: f, {"basis": "def2-spv"}, ["def2svp"]),
        (lambda f: f, {"limit": 0}, ["limit", "at least 1"]),
    ],
)
def test_matrices_that_cannot_be_meant(waters, tmp_path, change, options, says):
    path = tmp_path / "w.npz"
    fock = np.array([change(m.matrices["fock"]) for m in waters])
    positions = np.array([m.atoms.positions for m in waters])
    np.savez(path, R=positions, Z=waters[0].atoms.numbers, F=fock)
    with pytest.raises(opml.errors.OpmlError) as caught:
        opml.read_dataset(path, **{"basis": "def2-svp", "convention": "pyscf", **options})
    assert "\n" not in str(caught.value)
    for words in says:
        assert words in str(caught.value)


def test_signs_of_f_tell_orca():
    """HO- in cc-pVTZ: ORCA's z3, xz2, yz2, ..., of f, the last two with the other sign."""
    s = opml.Structure([1, 8], [[0.0, 0.1, 0.2], [1.0, 1.2, -0.9]], charge=-1)
    basis = opml.load_basis("cc-pvtz", s.numbers)
    ls = layout_of(s, basis).shell_ls
    mol = gto.M(atom="H 0 0.1 0.2; O 1 1.2 -0.9", unit="B", charge=-1, basis="cc-pvtz", verbose=0)
    fock = scf.RHF(mol).run(max_cycle=1).get_fock()
    fock, overlap, t, v = (
        opml.from_pyscf(x, s, basis)
        for x in (fock, *(mol.intor(n) for n in ("int1e_ovlp", "int1e_kin", "int1e_nuc")))
    )
    components = {0: [0], 1: [1, 2, 0], 2: [2, 3, 1, 4, 0], 3: [3, 4, 2, 5, 1, 6, 0]}
    signs = {0: [1], 1: [1] * 3, 2: [1] * 5, 3: [1, 1, 1, 1, 1, -1, -1]}
    start = np.cumsum([0, *(2 * l + 1 for l in ls)])
    index = np.concatenate([a + np.array(components[l]) for a, l in zip(start, ls, strict=False)])
    sign = np.concatenate([signs[l] for l in ls])
    operators = [overlap, t, v, v @ np.linalg.solve(overlap, v)]
    orca = "p components stored as (z, x, y) and m = 0, 1, -1, 2, -2, ... for l > 1"
    for matrix in (fock, overlap):
        stored = matrix[np.ix_(index, index)] * np.outer(sign, sign)
        np.testing.assert_array_equal(from_convention(stored, ls, "orca"), matrix)
        if matrix is fock:
            assert diagnose_fock([(stored, operators, ls)]) == orca
    assert diagnose(stored, overlap, ls) == orca
    assert diagnose(overlap[np.ix_(index, index)], overlap, ls) == "unknown"


def test_components_of_g():
    index, sign = component_order("orca", 4)
    assert index.tolist() == [8, 6, 4, 2, 0, 1, 3, 5, 7]
    assert sign.tolist() == [-1, -1, 1, 1, 1, 1, 1, -1, -1]


def _qh9(path, molecules, dynamic=False, z=np.int32, converged=lambda i: 1):
    """As in ``dataset_generation_examples`` of QH9."""
    with sqlite3.connect(path) as c:
        if dynamic:
            c.execute(
                "CREATE TABLE data (id INTEGER NOT NULL, geo_id INTEGER NOT NULL, N INTEGER, Z BLOB"
                ", pos BLOB, ekin FLOAT, epot FLOAT, etot FLOAT, time FLOAT, Ham BLOB, "
                "converged INT)"
            )
        else:
            c.execute(
                "CREATE TABLE data (id INTEGER NOT NULL PRIMARY KEY,  N INTEGER, Z BLOB, "
                "pos BLOB, Ham BLOB)"
            )
        for i, m in enumerate(molecules):
            r = m.atoms.positions / (ANGSTROM_PER_BOHR if dynamic else 1)
            blobs = [x.tobytes() for x in (m.atoms.numbers.astype(z), r)]
            ham = m.matrices["fock"].tobytes()
            if dynamic:
                row = (7, i, len(m.atoms), *blobs, 0.1, m.energy, m.energy, 50.0 * i, ham)
                c.execute("INSERT INTO data VALUES (?,?,?,?,?,?,?,?,?,?,?)", (*row, converged(i)))
            else:
                c.execute("INSERT INTO data VALUES (?,?,?,?,?)", (i, len(m.atoms), *blobs, ham))
    c.close()
    return path


def test_qh9(mixed, tmp_path):
    stable = opml.read_dataset(_qh9(tmp_path / "QH9Stable.db", mixed))
    _same(stable, mixed, ("fock",))
    assert stable.meta["method"] == "b3lyp5"
    assert stable.meta["basis"] == "def2-svp"
    np.testing.assert_allclose(
        stable.structures[2].positions * ANGSTROM_PER_BOHR, mixed[2].atoms.positions, atol=1e-12
    )
    dynamic = _qh9(tmp_path / "QH9Dynamic_300k.db", mixed, True)
    found = opml.read_dataset(dynamic)
    _same(found, mixed, ("fock",))
    np.testing.assert_allclose(found["energy"], [m.energy for m in mixed])
    for a, b in zip(found.structures, opml.read_structures(dynamic), strict=True):
        np.testing.assert_array_equal(a.positions, b.positions)
    some = _qh9(tmp_path / "some.db", mixed, True, converged=lambda i: int(i != 1))
    with pytest.warns(DataWarning, match="row 1"):
        assert len(opml.read_dataset(some)) == 2
    with pytest.raises(ConventionError, match="Pass convention='pyscf'"):
        opml.read_dataset(dynamic, convention="opml")


def test_phisnet(waters, tmp_path):
    path = tmp_path / "water.db"
    with sqlite3.connect(path) as c:
        c.execute(
            "CREATE TABLE data (id INTEGER NOT NULL PRIMARY KEY, R BLOB, E FLOAT, F BLOB, H BLOB, "
            "S BLOB, C BLOB)"
        )
        c.execute("CREATE TABLE nuclear_charges (id INTEGER PRIMARY KEY, N INTEGER, Z BLOB)")
        numbers = waters[0].atoms.numbers.astype(np.int32).tobytes()
        c.execute("INSERT INTO nuclear_charges VALUES (0, 3, ?)", [numbers])
        for i, m in enumerate(waters):
            arrays = [m.atoms.positions / ANGSTROM_PER_BOHR, 0.01 * np.ones((3, 3))]
            arrays += [m.stored(n, "opml") for n in ("fock", "overlap", "fock")]
            r, *rest = (a.astype(np.float32).tobytes() for a in arrays)
            c.execute("INSERT INTO data VALUES (?,?,?,?,?,?,?)", (i, r, m.energy, *rest))
    c.close()
    found = opml.read_dataset(path)
    _same(found, waters, ("fock", "overlap"), SINGLE)
    np.testing.assert_allclose(found["energy"], [m.energy for m in waters])
    np.testing.assert_allclose(found["forces"], 0.01, rtol=1e-6)


@pytest.mark.parametrize("packed", [False, True])
def test_schnorb(waters, tmp_path, packed):
    path = tmp_path / "schnorb_hamiltonian_water.db"
    with connect(path) as db:
        for m in waters:
            matrices = {
                "hamiltonian": m.stored("fock", "orca"),
                "overlap": m.stored("overlap", "orca"),
            }
            data = {k: v.astype(np.float32) for k, v in matrices.items()}
            if packed:  # as SchNetPack wrote arrays then
                data = {
                    name: value
                    for k, v in data.items()
                    for name, value in (
                        (k, base64.b64encode(v.tobytes()).decode()),
                        (f"_shape_{k}", v.shape),
                        (f"_dtype_{k}", str(v.dtype)),
                    )
                }
            forces = np.full((3, 3), 0.1, np.float32)
            db.write(m.atoms, data={**data, "energy": np.array([m.energy + 76]), "forces": forces})
    found = opml.read_dataset(path)
    _same(found, waters, ("fock", "overlap"), SINGLE)
    assert found.meta["order_in_file"] == "orca"
    np.testing.assert_allclose(found["energy"], [m.energy + 76 for m in waters])
    np.testing.assert_allclose(found["forces"], 0.1 * ANGSTROM_PER_BOHR, rtol=1e-6)


def _truncated(path, molecules):
    whole = _qh9(path, 8 * molecules).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def _not_a_database(path, molecules):
    path.write_bytes(b"SQLite format 3\0" + bytes(3000))


def _other_table(path, molecules):
    with sqlite3.connect(path) as c:
        c.execute("CREATE TABLE t (a)")
    c.close()


def _a_view(path, molecules):
    """A view runs what the file says, without end."""
    with sqlite3.connect(path) as c:
        c.execute(
            "CREATE VIEW data AS WITH RECURSIVE t(N) AS (SELECT 1 UNION ALL SELECT N + 1 FROM t) "
            "SELECT 1 AS N, zeroblob(4) AS Z, zeroblob(24) AS pos, zeroblob(8) AS Ham FROM t"
        )
    c.close()


def _generated(path, molecules):
    """A column that claims a gigabyte."""
    with sqlite3.connect(path) as c:
        c.execute(
            "CREATE TABLE data (N INTEGER, Z BLOB, pos BLOB, "
            "Ham BLOB GENERATED ALWAYS AS (zeroblob(1000000000)))"
        )
        c.execute("INSERT INTO data VALUES (1, x'01000000', x'00')")
    c.close()


def _other_types(path, molecules):
    _qh9(path, molecules)
    with sqlite3.connect(path) as c:
        c.execute("UPDATE data SET Ham = 'text'")
    c.close()


def _huge_count(path, molecules):
    _qh9(path, molecules)
    with sqlite3.connect(path) as c:
        c.execute("UPDATE data SET N = 1000000000000")
    c.close()


def _periodic(path, molecules):
    with connect(path) as db:
        db.write(ase.Atoms("H", cell=[3, 3, 3], pbc=True))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_truncated, "a complete SQLite database"),
        (_not_a_database, "a complete SQLite database"),
        (lambda path, _: _qh9(path, []), "at least one"),
        (_other_table, "tables t"),
        (lambda path, m: _qh9(path, m, z=np.int64), "Z of row 0"),
        (_a_view, "tables none"),
        (_generated, "tables data"),
        (_other_types, "Ham of row 0"),
        (_huge_count, "N of row 0"),
        (_periodic, "a periodic cell"),
    ],
)
def test_databases_that_cannot_be_read(waters, tmp_path, make, says):
    path = tmp_path / "bad.db"
    make(path, waters[:1])
    with pytest.raises(DataError) as caught:
        opml.read_dataset(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert says in str(caught.value)

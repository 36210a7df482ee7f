"""Labels in number: what is written, what survives a kill, and what is refused."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import h5py
import numpy as np
import pytest

from opml_jax.basis import from_pyscf, layout_of, load_basis, to_pyscf
from opml_jax.data import Loader, read_dataset
from opml_jax.data import generate as module
from opml_jax.data.generate import Outcome, generate
from opml_jax.data.minima import relax
from opml_jax.data.reference import Method, calculate, converge, mean_field, record_id
from opml_jax.data.shards import merge
from opml_jax.data.store import write_hdf5
from opml_jax.errors import BasisError, ConventionError, ConvergenceError, DataError, OpmlError
from opml_jax.structures import Structure
from opml_jax.units import ANGSTROM_PER_BOHR

HF = Method("hf", "sto-3g")
CALCULATED = {"energy", "forces", "dipole", "mo_energy", "mo_occ", "fock", "dm", "overlap"}
CALCULATED |= {"kinetic", "external_potential"}
# Converged to 1e-10 Hartree: the energy differs from the converged one by less than that, what is
# linear in the orbitals by its square root
SCF = 1e-5
# Energies converged to 1e-10, differences over 2 * 0.01 Bohr, and (0.01)^2 of a third derivative
FORCES = 1e-4


def _hydrogen(r):
    return Structure([1, 1], [[0.0, 0.0, 0.0], [0.0, 0.0, r]])


@pytest.fixture(scope="module")
def geometries(water):
    stretched = water.replace(positions=1.05 * water.positions)
    return [_hydrogen(1.3), _hydrogen(1.4), water, stretched]


@pytest.fixture
def labelled(tmp_path, geometries):
    """An output file with the labels of the first two geometries."""
    path = tmp_path / "out.h5"
    generate(geometries[:2], path, HF)
    return path


def _names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_labels_are_what_they_are_called(water):
    found = calculate(water, HF)
    basis = load_basis("sto-3g", water.numbers)
    nao = layout_of(water, basis).nao
    assert set(found) == CALCULATED
    electronic = 0.5 * (found["dm"] * (found["fock"] + found["kinetic"])).sum()
    electronic += 0.5 * (found["dm"] * found["external_potential"]).sum()
    distance = np.linalg.norm(water.positions[:, None] - water.positions, axis=-1)
    z = np.array(water.numbers)
    repulsion = sum(z[i] * z[j] / distance[i, j] for i in range(3) for j in range(i))
    assert found["energy"] == pytest.approx(electronic + repulsion, abs=1e-8)
    assert (found["dm"] * found["overlap"]).sum() == pytest.approx(10)
    assert found["mo_occ"].tolist() == [2.0] * 5 + [0.0] * (nao - 5)
    f, s, p = (found[k] for k in ("fock", "overlap", "dm"))
    np.testing.assert_allclose(f @ p @ s, s @ p @ f, atol=SCF)  # stationary
    mf = mean_field(water, HF)
    np.testing.assert_allclose(s, from_pyscf(mf.mol.intor("int1e_ovlp"), water, basis), atol=1e-12)
    mf.kernel()
    np.testing.assert_allclose(found["dipole"], mf.dip_moment(unit="AU", verbose=0), atol=SCF)


@pytest.mark.parametrize("method", [HF, Method("pbe", "sto-3g", grid_level=1)], ids=["hf", "pbe"])
def test_forces_are_minus_the_gradient(water, method):
    """With a coarse grid too: its response is part of the gradient."""
    h, step = 0.01, np.zeros((3, 3))
    step[1, 2] = h
    up, down = (
        calculate(water.replace(positions=water.positions + s), method)["energy"]
        for s in (step, -step)
    )
    assert calculate(water, method)["forces"][1, 2] == pytest.approx(
        (down - up) / 2 / h, abs=FORCES
    )


def test_dipole_of_an_ion_is_about_the_origin(water):
    ion = Structure(water.numbers, water.positions, charge=2)
    shift = np.array([1.0, -2.0, 0.5])
    moved = ion.replace(positions=ion.positions + shift)
    change = calculate(moved, HF)["dipole"] - calculate(ion, HF)["dipole"]
    np.testing.assert_allclose(change, 2 * shift, atol=SCF)


def test_writes_one_file(tmp_path, geometries):
    calls = []
    outcome = generate(
        geometries,
        tmp_path / "out.h5",
        HF,
        extra_meta={"source": "by hand"},
        on_progress=lambda *x: calls.append(x),
    )
    assert outcome == Outcome(done=4, found=0, failed=())
    assert calls == [(i, 4, 0) for i in range(5)]
    assert _names(tmp_path) == ["out.h5"]
    found = read_dataset(tmp_path / "out.h5")
    assert found.meta["source"] == "by hand"
    assert {k: found.meta[k] for k in ("method", "basis", "conv_tol", "reference")} == {
        "method": "hf",
        "basis": "sto-3g",
        "conv_tol": 1e-10,
        "reference": "RHF",
    }
    assert {"pyscf_version", "units", "convention"} <= set(found.meta)
    for i, s in enumerate(geometries):
        np.testing.assert_array_equal(found.structures[i].positions, s.positions)
        for name, value in calculate(s, HF).items():
            np.testing.assert_allclose(found.labels[name][i], value, atol=SCF)


def test_a_rerun_computes_nothing(labelled, geometries, monkeypatch):
    monkeypatch.setattr(module, "calculate", None)
    before = read_dataset(labelled)
    assert generate(geometries[:2], labelled, HF) == Outcome(done=0, found=2, failed=())
    after = read_dataset(labelled)
    for name in before.labels:
        np.testing.assert_array_equal(after[name], before[name])


def test_more_geometries_extend_the_file(labelled, geometries):
    shuffled = [geometries[2], geometries[1], geometries[0]]
    assert generate(shuffled, labelled, HF) == Outcome(done=1, found=2, failed=())
    found = read_dataset(labelled)
    assert [s.n_atoms for s in found.structures] == [3, 2, 2]
    assert found["energy"][0] == pytest.approx(calculate(geometries[2], HF)["energy"], abs=1e-8)


def test_fewer_geometries_lose_nothing(labelled, geometries):
    """A rerun with a limit must not throw away what is labelled already."""
    generate(geometries[:1], labelled, HF)
    assert len(read_dataset(labelled)) == 2


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (Method("hf", "def2-svp"), "basis of"),
        (Method("pbe", "sto-3g"), "method of"),
        (Method("hf", "sto-3g", conv_tol=1e-8), "conv_tol of"),
    ],
)
def test_another_level_of_theory_is_refused(labelled, geometries, method, says):
    before = labelled.read_bytes()
    with pytest.raises(ConventionError, match="another level of theory") as caught:
        generate(geometries[:2], labelled, method)
    assert str(caught.value).startswith(says)
    assert labelled.read_bytes() == before


def test_labels_without_forces(labelled, geometries, water):
    method = Method("hf", "sto-3g", forces=False)
    assert set(calculate(water, method)) == CALCULATED - {"forces"}
    with pytest.raises(ConventionError, match=r"forces of .* must be False; got True"):
        generate(geometries[:2], labelled, method)


def test_density_fitting_changes_labels_by_its_error(water):
    exact = Method("pbe", "def2-svp", 1, forces=False)
    fitted = dataclasses.replace(exact, density_fit=True)
    assert record_id(water, exact) != record_id(water, fitted)
    left = calculate(water, exact)["energy"] - calculate(water, fitted)["energy"]
    assert 1e-9 < abs(left) < 1e-4  # PySCF's fitting basis of def2-SVP: 2e-5 Hartree for water


def test_iterates_are_densities_and_their_fock_matrices(water, tmp_path):
    method = Method("pbe", "sto-3g", grid_level=1, forces=False, iterates=3)
    output = tmp_path / "labels.h5"
    generate([water], output, method)
    data = read_dataset(output)
    mf, basis = mean_field(water, method), load_basis("sto-3g", water.numbers)
    steps = []
    for cycle in (1, 2, 3):
        dm, fock = (data.labels[f"{kind}_cycle_{cycle}"][0] for kind in ("dm", "fock"))
        again = mf.get_fock(dm=np.asarray(to_pyscf(dm, water, basis)))
        # the same grid and density: what is left is what PySCF's screening leaves
        np.testing.assert_allclose(from_pyscf(again, water, basis), fock, atol=1e-9)
        steps.append(np.abs(dm - data.labels["dm"][0]).max())
    assert steps[0] > 10 * steps[2] > 0
    with pytest.raises(OpmlError, match="iterates must be from 0 to 4"):
        Method(iterates=5)


@pytest.mark.parametrize("functional", ["pbe", "r2scan", "lda,vwn"])
def test_orbitals_kept_on_the_grid_change_nothing(water, monkeypatch, functional):
    method = Method(functional, "sto-3g", grid_level=1, forces=False)
    kept = calculate(water, method)
    monkeypatch.setattr("opml_jax.data.reference.KEPT_BYTES", 0)
    for name, value in calculate(water, method).items():
        np.testing.assert_array_equal(value, kept[name])


def test_identical_geometries_are_refused(tmp_path):
    with pytest.raises(DataError, match="structures must be distinct ones"):
        generate([_hydrogen(1.4), _hydrogen(1.4)], tmp_path / "out.h5", HF)
    assert _names(tmp_path) == []


def test_nothing_to_label_is_refused(tmp_path):
    with pytest.raises(DataError, match="structures must be at least one"):
        generate([], tmp_path / "out.h5", HF)
    assert _names(tmp_path) == []


def _failing_at(index, structures):
    """``calculate`` that does not converge for one geometry."""

    def fake(structure, method):
        if record_id(structure, method) == record_id(structures[index], method):
            raise ConvergenceError("the SCF did not converge")
        return calculate(structure, method)

    return fake


def test_what_does_not_converge_is_logged_and_left_out(tmp_path, geometries, monkeypatch):
    monkeypatch.setattr(module, "calculate", _failing_at(1, geometries))
    path = tmp_path / "out.h5"
    outcome = generate(geometries[:3], path, HF)
    assert outcome == Outcome(2, 0, ((1, "the SCF did not converge"),))
    log = tmp_path / "out.h5.failed.txt"
    assert log.read_text() == "1\tthe SCF did not converge\n"
    assert [s.n_atoms for s in read_dataset(path).structures] == [2, 3]
    monkeypatch.undo()  # whatever was wrong is mended
    assert generate(geometries[:3], path, HF) == Outcome(1, 2, ())
    assert _names(tmp_path) == ["out.h5"]


def test_all_failed_is_an_error_and_leaves_no_file(tmp_path, geometries, monkeypatch):
    monkeypatch.setattr(module, "calculate", _failing_at(0, geometries))
    with pytest.raises(DataError, match=r"none of 1 geometry.*did not converge"):
        generate(geometries[:1], tmp_path / "out.h5", HF)
    assert _names(tmp_path) == ["out.h5.failed.txt"]


def test_what_is_wrong_with_every_geometry_is_said_before_the_first(tmp_path, geometries):
    """A basis that does not fit is no failed calculation: nothing is left behind."""
    for bad in ("def2-spv", "gth-szv"):
        with pytest.raises(BasisError, match=bad):
            generate(geometries, tmp_path / "out.h5", Method("hf", bad))
    assert _names(tmp_path) == []


def test_the_ladder_ends_where_the_plain_attempt_does():
    lithium_hydride = Structure([3, 1], [[0.0, 0.0, 0.0], [0.0, 0.0, 3.0]])
    plain, attempt = converge(mean_field(lithium_hydride, HF))
    assert attempt == "plain"
    short, attempt = converge(mean_field(lithium_hydride, Method("hf", "sto-3g", max_cycle=4)))
    assert attempt != "plain"
    assert short.e_tot == pytest.approx(plain.e_tot, abs=1e-8)
    assert short.level_shift == 0.0


def test_what_cannot_converge_is_refused(water):
    with pytest.raises(ConvergenceError, match="did not converge in 1 cycles"):
        calculate(water, Method("hf", "sto-3g", max_cycle=1, conv_tol=1e-14))


def test_open_shells_are_refused():
    radical = Structure([8, 1], [[0.0, 0.0, 0.0], [0.0, 0.0, 1.83]], spin=1)
    with pytest.raises(OpmlError, match=r"spin must be 0.*got 1"):
        calculate(radical, HF)


@pytest.mark.parametrize(("name", "nearest"), [("pbbe", "pbe"), ("b3lyyp", "b3lyp"), ("", "")])
def test_unknown_methods_are_refused(name, nearest):
    with pytest.raises(OpmlError, match="method must be 'hf' or a functional") as caught:
        Method(name)
    assert nearest in str(caught.value)


def test_relaxing(water):
    found = relax(water, HF)
    assert np.abs(calculate(found, HF)["forces"]).max() < 1e-4
    bond = np.linalg.norm(found.positions[1] - found.positions[0]) * ANGSTROM_PER_BOHR
    assert bond == pytest.approx(0.989, abs=2e-3)  # HF/STO-3G water, a textbook number


def test_runs_on_any_executor(tmp_path, geometries):
    with ThreadPoolExecutor(2) as executor:
        outcome = generate(geometries[:2], tmp_path / "out.h5", HF, executor=executor)
    assert outcome == Outcome(2, 0, ())


def _truncate(part):
    part.write_bytes(part.read_bytes()[:100])


def _scramble(part):
    """Name a way of compression that nobody knows (bytes 10 and 11 of the central directory)."""
    content = bytearray(part.read_bytes())
    content[content.index(b"PK\x01\x02") + 10] = 77
    part.write_bytes(content)


@pytest.mark.parametrize("damage", [_truncate, _scramble])
def test_parts_of_a_killed_run_are_used(tmp_path, geometries, damage):
    class Killed(BaseException):
        pass

    def die(done, total, failed):
        if done == 2:
            raise Killed

    path = tmp_path / "out.h5"
    with pytest.raises(Killed):
        generate(geometries[:3], path, HF, on_progress=die)
    parts = sorted((tmp_path / "out.h5.parts").glob("*.npz"))
    assert len(parts) == 2
    damage(parts[0])  # from outside: the geometry is computed again
    assert generate(geometries[:3], path, HF).failed == ()
    assert len(read_dataset(path)) == 3
    assert _names(tmp_path) == ["out.h5"]


XYZ = "2\n\nH 0 0 0\nH 0 0 {:.4f}\n"


def test_sigkill_loses_no_finished_geometry(tmp_path):
    """The real thing: a process group killed without warning, then the same command again."""
    structures = tmp_path / "h2.xyz"
    n = 12
    structures.write_text("".join(XYZ.format(0.6 + 0.02 * i) for i in range(n)))
    output, parts = tmp_path / "out.h5", tmp_path / "out.h5.parts"
    command = [Path(sys.executable).with_name("opml"), "generate", structures, "-o", output]
    command += ["--method", "pbe", "--basis", "def2-svp", "--grid-level", "2", "--workers", "2"]
    process = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not list(parts.glob("*.npz")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    finished = list(parts.glob("*.npz"))
    assert 1 <= len(finished) < n
    assert not output.exists()
    for part in finished:
        with np.load(part) as f:
            assert set(f.files) == CALCULATED
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert f"{n - len(finished)} labelled, {len(finished)} found, 0 failed" in again.stdout
    assert len(read_dataset(output)) == n
    assert _names(tmp_path) == ["h2.xyz", "out.h5"]


def test_method_of_meta_data():
    method = Method("pbe0", "sto-3g", grid_level=2, conv_tol=1e-8, forces=False)
    meta = {**method.meta(), "source": "w.xyz"}
    assert Method.from_meta(meta) == method
    assert Method.from_meta({"method": "hf"}, basis="sto-3g") == Method("hf", "sto-3g")
    assert Method.from_meta(meta, conv_tol=1).conv_tol == 1
    for wrong, says in (
        ({"method": "pbe"}, "basis of the data set"),
        ({"basis": "sto-3g"}, "method of the data set"),
        ({**meta, "grid_level": "4"}, "grid_level of the data set must be of type int"),
        ({**meta, "method": 5}, "method of the data set must be of type str"),
    ):
        with pytest.raises(ConventionError, match=says):
            Method.from_meta(wrong)
    with pytest.raises(OpmlError, match="functional"):
        Method.from_meta({**meta, "method": "pbbe"})


DIFFUSE = Method("hf", "aug-cc-pvtz", forces=False)
CLOSE = 0.35 / ANGSTROM_PER_BOHR  # the overlap of H2 has an eigenvalue of 8e-7, which PySCF drops


def test_fewer_levels_than_functions(tmp_path):
    """Among molecules that have all, in every file that is made of them."""
    path, structures = tmp_path / "out.h5", [_hydrogen(1.4), _hydrogen(CLOSE), _hydrogen(1.5)]
    assert generate(structures[:2], path, DIFFUSE) == Outcome(2, 0, ())
    assert generate(structures, path, DIFFUSE) == Outcome(1, 2, ())
    merge([path], tmp_path / "merged.h5")
    write_hdf5(tmp_path / "levels.h5", read_dataset(path, lazy=True), ["mo_energy", "mo_occ"])
    close = calculate(structures[1], DIFFUSE)
    assert close["fock"].shape == (46, 46)
    for name in ("out.h5", "merged.h5", "levels.h5"):
        found = read_dataset(tmp_path / name)
        for label in ("mo_energy", "mo_occ"):
            assert [len(v) for v in found.labels[label]] == [46, 45, 46]
        np.testing.assert_allclose(found.labels["mo_energy"][1], close["mo_energy"], atol=SCF)
    whole = read_dataset(tmp_path / "merged.h5")
    np.testing.assert_allclose(whole["fock"][1], close["fock"], atol=SCF)
    loader = Loader(whole, load_basis("aug-cc-pvtz", [1]), batch_size=3, shuffle=False)
    (batch,) = loader.epoch(0)
    levels = batch.labels["mo_energy"]
    assert levels.shape == (3, 46)
    assert np.flatnonzero(levels[:, -1] == 0).tolist() == [1]


def test_files_of_earlier_versions_have_as_many_levels_as_functions(labelled):
    new = read_dataset(labelled)
    with h5py.File(labelled, "r+") as f:
        del f["n_mo"]
    old = read_dataset(labelled)
    for name, values in new.labels.items():
        np.testing.assert_array_equal(old.labels[name], values)


def _stop_after(n):
    class Stopped(BaseException):
        pass

    def stop(done, total, failed):
        if done == n:
            raise Stopped

    return Stopped, stop


def test_what_cannot_be_read_replaces_nothing(labelled, geometries):
    """Labels that do not fit together: parts and earlier labels stay, and the error says where."""
    before = labelled.read_bytes()
    stopped, stop = _stop_after(3)
    with pytest.raises(stopped):
        generate(geometries, labelled, HF, on_progress=stop)
    (part,) = (parts := labelled.with_name("out.h5.parts")).glob("*.npz")
    with np.load(part) as f:
        labels = dict(f)
    np.savez(part, **{**labels, "dm": labels["dm"][:1, :1]})
    with pytest.raises(DataError, match=r"labels stay in .*out\.h5\.parts: dm\[2\]"):
        generate(geometries, labelled, HF)
    assert labelled.read_bytes() == before
    assert len(list(parts.glob("*.npz"))) == 2
    np.savez(part, **{**labels, "dm": np.nan * labels["dm"]})  # no number: calculated again
    assert generate(geometries, labelled, HF).failed == ()
    np.testing.assert_allclose(read_dataset(labelled).labels["dm"][2], labels["dm"], atol=SCF)
    assert _names(labelled.parent) == ["out.h5"]


def test_more_cycles_are_no_other_level(tmp_path, labelled, geometries):
    more = dataclasses.replace(HF, max_cycle=200)
    assert generate(geometries[:3], labelled, more) == Outcome(1, 2, ())
    assert generate(geometries[:3], labelled, HF) == Outcome(0, 3, ())
    hydrogen = _hydrogen(1.4)
    # names of parts in version 0.1
    assert record_id(hydrogen, more) == record_id(hydrogen, HF) == "51830d4df040d7b7517d"
    fitted = Method("pbe", "def2-svp", density_fit=True)
    assert record_id(hydrogen, fitted) == "9493e33f85a4c578a1bc"
    other = tmp_path / "other.h5"
    generate(geometries[3:], other, more)
    assert merge([labelled, other], tmp_path / "all.h5") == (4, 0)


@pytest.mark.parametrize("name", ["b3lyp-d3bj", "pbe-d4", "wb97x-d"])
def test_a_missing_dispersion_is_said_before_the_first(tmp_path, geometries, name):
    if name != "wb97x-d":  # which PySCF has nowhere
        pytest.importorskip("pyscf.scf.dispersion")
        from pyscf.scf import dispersion

        if dispersion.dftd3 is not None:
            pytest.skip("pyscf-dispersion is installed")
    with pytest.raises(OpmlError, match=f"{name}', whose dispersion would be missing"):
        generate(geometries, tmp_path / "out.h5", Method(name, "sto-3g"))
    assert _names(tmp_path) == []


def test_forking_executors_are_refused(tmp_path, geometries):
    path = tmp_path / "out.h5"
    with (
        ProcessPoolExecutor(1, mp_context=get_context("fork")) as executor,
        pytest.raises(OpmlError, match=r"executor must be .*Workers.*spawn"),
    ):
        generate(geometries[:1], path, HF, executor=executor)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        assert generate(geometries[:1], path, HF, executor=executor) == Outcome(1, 0, ())

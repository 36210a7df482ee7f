"""``opml doctor``: what is installed, and whether the parts work together."""

from __future__ import annotations

import argparse

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "e3nn-jax",
    "pyscf",
    "pyscfad",
    "numpy",
    "chex",
    "flatbuffers",
    "h5py",
    "ase",
    "safetensors",
    "matplotlib",
)
EXTRAS = {
    "jax-md": ("md", "opml md"),
    "distributed": ("dask", "opml generate --scheduler"),
    "tensorboardX": ("tensorboard", "opml train --tensorboard"),
}
"""Optional packages: the extra that has each, and what needs it."""


def configure(p: argparse.ArgumentParser) -> None:
    """The command takes no arguments."""


def run(args: argparse.Namespace) -> int:
    """Run the command; exit code 1 when a check fails."""
    import os
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from ..errors import to_install

    print(
        f"opml_jax {version('opml_jax')}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}"
    )
    for name in PACKAGES:
        try:
            print(f"  {name:<12} {version(name)}")
        except PackageNotFoundError:
            print(f"  {name:<12} MISSING: pip install {name}")
    for name, (extra, use) in EXTRAS.items():
        try:
            print(f"  {name:<12} {version(name)}")
        except PackageNotFoundError:
            print(f"  {name:<12} not installed, for {use}: {to_install(extra)}")
    failed = _devices(args.debug)
    print(f"compiled programs: {_programs()}")
    for text, check in (
        ("overlap and potential against PySCF", _integrals),
        ("gradient of the potential", _gradient),
        ("bundled data", _bundled),
    ):
        try:
            print(f"ok      {text}: {check()}")
        except Exception as err:  # a doctor reports every ailment
            if args.debug:
                raise
            failed += 1
            print(f"FAILED  {text}: {type(err).__name__}: {' '.join(str(err).split())}")
    return 1 if failed else 0


def _devices(debug: bool) -> int:
    """Print JAX's devices; 1 if those asked for are not there, and the checks run on the CPU."""
    import jax

    from ..errors import OpmlError
    from .runs import enable_x64

    failed = 0
    try:
        enable_x64()
    except OpmlError as err:
        if debug:
            raise
        print(f"FAILED  JAX devices: {err}")
        print("        the checks below run on the CPU")
        jax.config.update("jax_platforms", "cpu")
        failed = 1
    print(f"JAX devices: {', '.join(str(d) for d in jax.devices())}")
    return failed


def _programs() -> str:
    """Where compiled programs are kept, and how many there are."""
    from ..programs import LARGEST, keeps, program_cache

    cache = program_cache()
    if cache.folder is None:
        return f"not kept ({cache.reason})"
    if not keeps():
        return f"not kept ({cache.folder} cannot be written)"
    number, traces, size = cache.size
    most = f" of at most {LARGEST / 2**20:.0f}" if cache.ours else ""
    counted = f"{number}, and {traces} traces" if cache.ours else f"{number}"
    return f"kept in {cache.folder} ({cache.reason}): {counted}, {size / 2**20:.1f}{most} MiB"


def _water():
    from ..basis import load_basis
    from ..structures import Structure

    water = Structure([8, 1, 1], [[0, 0, 0.22], [0, 1.43, -0.88], [0, -1.43, -0.88]])
    return water, load_basis("def2-svp", water.numbers)


def _integrals() -> str:
    import functools

    import numpy as np

    from ..basis import from_pyscf
    from ..data.reference import molecule
    from ..integrals import external_potential, overlap
    from ..programs import Program

    water, basis = _water()
    mol = molecule(water, basis.name)
    errors = [
        np.abs(
            Program(functools.partial(f, basis=basis)).for_work(0)(water)
            - from_pyscf(mol.intor(name), water, basis)
        ).max()
        for f, name in ((overlap, "int1e_ovlp"), (external_potential, "int1e_nuc"))
    ]
    if max(errors) > 1e-11:
        raise ValueError(f"differences {errors[0]:.1e}, {errors[1]:.1e}")
    return f"differences {errors[0]:.0e}, {errors[1]:.0e}"


def _gradient() -> str:
    import jax
    import numpy as np

    from ..integrals import external_potential
    from ..programs import Program

    water, basis = _water()

    def energy(x):
        return (external_potential(water.replace(positions=x), basis) ** 2).sum()

    x = np.asarray(water.positions)
    step = np.zeros_like(x)
    step[1, 1] = 1e-4
    at = Program(jax.value_and_grad(energy)).for_work(0)
    exact = at(x)[1][1, 1]
    finite = (at(x + step)[0] - at(x - step)[0]) / 2e-4
    if abs(exact / finite - 1) > 1e-6:
        raise ValueError(f"{exact} against {finite} by finite differences")
    return f"relative difference to finite differences {abs(exact / finite - 1):.0e}"


def _bundled() -> str:
    from ..data import bundled, read_dataset

    return repr(read_dataset(bundled("water")))

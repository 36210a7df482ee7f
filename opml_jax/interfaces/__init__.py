"""Doors to other programs: ASE, jax-md, PySCF (guesses, certificates, energies), JAX alone, files.

Each is imported on first use, so that only those who walk through a door load what is behind it.
"""


def __getattr__(name: str):
    if name in ("ase", "density", "export", "files", "jax_md", "pyscf"):
        import importlib

        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Small molecules of QM7, and some larger ones, as xyz files for ``opml generate``.

    python benchmarks/qm7_small.py QM7.extxyz OUT

writes ``small.xyz``, every molecule of at most ``--heavy`` atoms other than hydrogen, and
``large.xyz``, ``--n-large`` molecules of one and of two more, drawn with seed 0: sizes that a model
of the small ones has not seen. Both from the smallest to the largest, so that a run of labels that
is stopped has the small ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import ase.io
import numpy as np
from qm7_split import read_qm7


def small_and_large(heavy: np.ndarray, most: int, n_large: int, seed: int = 0):
    """Indices of molecules up to ``most`` heavy atoms, and of ``n_large`` with one or two more.

    Args:
      heavy: heavy atoms of every molecule.
      most: heavy atoms of the small molecules.
      n_large: larger molecules, half of them of either size.
      seed: of the draw.
    """
    order = np.argsort(heavy, kind="stable")
    small = order[heavy[order] <= most]
    rng = np.random.default_rng(seed)
    large = [
        np.sort(rng.choice(np.flatnonzero(heavy == size), n, replace=False))
        for size, n in ((most + 1, n_large - n_large // 2), (most + 2, n_large // 2))
    ]
    return small, np.concatenate(large)


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("qm7", type=Path, help="extxyz")
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--heavy", type=int, default=5, help="of the small ones, at most")
    parser.add_argument("--n-large", type=int, default=60)
    args = parser.parse_args()
    molecules, _ = read_qm7(args.qm7)
    heavy = np.array([(m.numbers > 1).sum() for m in molecules])
    parts = small_and_large(heavy, args.heavy, args.n_large)
    for name, index in zip(("small", "large"), parts, strict=True):
        ase.io.write(args.out / f"{name}.xyz", [molecules[i] for i in index], format="xyz")
        print(f"{name}.xyz: {len(index)} molecules")


if __name__ == "__main__":
    main()

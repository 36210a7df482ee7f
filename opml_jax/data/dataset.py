"""A set of labelled structures: ragged arrays by name, atomic units, one convention."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, SupportsInt, overload

import numpy as np

from ..basis import Basis, layout_of
from ..errors import Code, ConventionError, DataError, counted, one_of
from ..quantities import LABELS
from ..structures import Structure
from .stored import StoredLabel


class Dataset(Sequence):
    """Structures with labels.

    ``len(ds)``, ``ds.structures[i]``, ``ds["energy"]`` (an array when shapes agree over the
    set, else a list), ``ds.subset(indices)``.

    Labels may stay in a file (``read_dataset(path, lazy=True)``): ``ds.labels[name][i]`` and
    ``ds[i]`` then read what is asked for, and ``ds[name]`` is an array of a field of few numbers a
    structure, and a :class:`StoredLabel`, still unread, of one that grows with the molecule.

    Args:
      structures: molecules.
      labels: for each name of :data:`opml_jax.quantities.LABELS` one array per structure, of the
        shape said there, or a :class:`StoredLabel`.
      meta: what describes the whole set: method, basis, convention, versions, ...
      layout_hashes: for sets with AO matrices, :attr:`opml_jax.basis.AOLayout.hash` of each
        structure: which functions in which order the rows are.

    Raises:
      DataError: an unknown field, or a label whose length or shape does not fit.
    """

    def __init__(
        self,
        structures: Iterable[Structure],
        labels: Mapping[str, Sequence[Any]] | None = None,
        meta: Mapping[str, Any] | None = None,
        layout_hashes: Sequence[str] | None = None,
    ):
        self.structures = list(structures)
        self.layout_hashes = None if layout_hashes is None else list(layout_hashes)
        self.meta = dict(meta or {})
        self.labels: dict[str, Sequence[np.ndarray]] = {}
        if self.layout_hashes is not None and len(self.layout_hashes) != len(self):
            raise DataError(
                "layout_hashes",
                got=len(self.layout_hashes),
                expected=f"one for each of {counted(len(self), 'structure')}",
            )
        for name, values in (labels or {}).items():
            one_of("label", name, LABELS, DataError)
            if len(values) != len(self.structures):
                raise DataError(
                    name,
                    got=f"{len(values)} values",
                    expected=f"one for each of {counted(len(self.structures), 'structure')}",
                    code=Code.LABEL_SHAPE,
                )
            if not isinstance(values, StoredLabel):
                values = [np.asarray(v, np.float64) for v in values]
            self.labels[name] = values
        self._check_shapes()

    def _check_shapes(self) -> None:
        """Refuse a label whose axes do not fit its structure, or another label of it."""
        sizes: list[dict[str | int, int]] = [{"atom": s.n_atoms} for s in self.structures]
        for name in self.labels:
            axes = LABELS[name].axes
            rows = zip(self.structures, sizes, self.shapes(name), strict=True)
            for i, (s, known, shape) in enumerate(rows):
                fits = len(shape) == len(axes)
                for n, a in zip(shape, axes, strict=False):
                    fits &= n == (known.setdefault(a, n) if isinstance(a, str) else a)
                if not fits or known.get("mo", 0) > known.get("ao", np.inf):
                    others = {a: n for a, n in known.items() if a != "atom"}
                    raise DataError(
                        f"{name}[{i}]",
                        got=f"shape {shape}",
                        expected=f"axes {axes} for {counted(s.n_atoms, 'atom')}"
                        + (f", as other labels {others}, mo up to ao" if others else ""),
                        code=Code.LABEL_SHAPE,
                    )

    def __len__(self) -> int:
        return len(self.structures)

    @overload
    def __getitem__(self, name: str) -> np.ndarray | list[np.ndarray]: ...
    @overload
    def __getitem__(self, name: SupportsInt) -> tuple[Structure, dict[str, np.ndarray]]: ...
    def __getitem__(self, name):
        """Labels by field name, or ``(structure, labels)`` by index."""
        if not isinstance(name, str):
            i = int(name)
            return self.structures[i], {k: v[i] for k, v in self.labels.items()}
        self.check_labels([name])
        values = self.labels[name]
        if isinstance(values, StoredLabel) and any(isinstance(a, str) for a in LABELS[name].axes):
            return values
        if len(set(self.shapes(name))) <= 1:
            return np.array(values)
        return values

    def shapes(self, name: str) -> list[tuple[int, ...]]:
        """Shape of a label of every structure; reads none."""
        values = self.labels[name]
        return values.shapes if isinstance(values, StoredLabel) else [v.shape for v in values]

    def __contains__(self, name) -> bool:
        return name in self.labels

    def subset(self, indices: Iterable[int]) -> Dataset:
        """Structures and labels at ``indices``, in that order.

        Raises:
          DataError: an index outside the set.
        """
        index = [int(i) for i in indices]
        if index and not (min(index) >= 0 and max(index) < len(self)):
            raise DataError(
                "indices",
                got=f"up to {max(index)}",
                expected=f"0 to {len(self) - 1}",
                hint="Does this split file belong to this data set?",
                code=Code.SPLIT,
            )
        return Dataset(
            [self.structures[i] for i in index],
            {
                k: v.take(index) if isinstance(v, StoredLabel) else [v[i] for i in index]
                for k, v in self.labels.items()
            },
            self.meta,
            None if self.layout_hashes is None else [self.layout_hashes[i] for i in index],
        )

    def check_labels(self, names: Iterable[str]) -> None:
        """Raise unless the set has these labels.

        Raises:
          DataError: naming the first it lacks, and those it has.
        """
        for name in names:
            if name not in self.labels:
                have = ", ".join(self.labels) or "none"
                got = f"{name!r}, not in this data set"
                raise DataError("label", got=got, expected=f"one of: {have}", code=Code.LABEL)

    def check_layout(self, basis: Basis) -> None:
        """Raise unless the AO matrices are in ``basis`` and the library's order.

        Raises:
          ConventionError: naming the first structure whose stored layout hash differs.
        """
        for i, (s, stored) in enumerate(
            zip(self.structures, self.layout_hashes or (), strict=False)
        ):
            expected = layout_of(s, basis).hash
            if stored != expected:
                raise ConventionError(
                    f"layout hash of structure {i}",
                    got=stored,
                    expected=f"{expected}, that of {s!r} in {basis!r}",
                    code=Code.LAYOUT,
                )

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers present, ascending."""
        return tuple(sorted({z for s in self.structures for z in s.numbers}))

    def __repr__(self) -> str:
        level = "/".join(str(self.meta[k]) for k in ("method", "basis") if k in self.meta)
        lazy = any(isinstance(v, StoredLabel) for v in self.labels.values())
        about = [counted(len(self), "structure"), *self.labels, level, "lazy" * lazy]
        return f"Dataset({', '.join(filter(None, about))})"


def concatenate(parts: Sequence[Dataset]) -> Dataset:
    """Join data sets; keeps the fields they all have and the meta entries they agree on.

    Labels that stay in files in one of them are not read.
    """
    names = [n for n in parts[0].labels if all(n in p for p in parts)]
    meta = {k: v for k, v in parts[0].meta.items() if all(p.meta.get(k) == v for p in parts[1:])}
    hashed = all(p.layout_hashes is not None for p in parts)
    return Dataset(
        [s for p in parts for s in p.structures],
        {n: _joined([p.labels[n] for p in parts]) for n in names},
        meta,
        [h for p in parts for h in p.layout_hashes or ()] if hashed else None,
    )


def _joined(labels: list[Sequence[np.ndarray]]) -> Sequence[np.ndarray]:
    if any(isinstance(v, StoredLabel) for v in labels):
        return StoredLabel.joined(labels)
    return [v for values in labels for v in values]

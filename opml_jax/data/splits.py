"""Splits as files: which structure trains, which validates, which tests."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..errors import Code, DataError, check_file
from ..structures.elements import symbol
from .dataset import Dataset
from .files import write_text

SPLITS = ("train", "validation", "calibration", "test")
"""What chooses weights, what chooses the model, what scales standard deviations, and the rest."""


def random_split(
    n: int, train: int, validation: int, test: int, *, seed: int, calibration: int = 0
) -> dict[str, list]:
    """Disjoint random index lists for ``n`` structures; none for calibration if that is 0.

    Raises:
      DataError: the sizes exceed ``n``, or train or validation is empty.
    """
    sizes = (train, validation, calibration, test)
    if min(train, validation) < 1 or min(calibration, test) < 0 or sum(sizes) > n:
        raise DataError(
            "split",
            got=f"{' + '.join(map(str, sizes))} structures",
            expected=f"positive train and validation sizes that sum to at most {n}",
            code=Code.SPLIT,
        )
    order = np.random.default_rng(seed).permutation(n)
    parts = np.split(order[: sum(sizes)], np.cumsum(sizes)[:-1])
    found = {k: sorted(int(i) for i in p) for k, p in zip(SPLITS, parts, strict=True)}
    return {k: v for k, v in found.items() if v or k != "calibration"}


def write_splits(path: str | os.PathLike, splits: Mapping[str, list]) -> None:
    """Write a split file (JSON, one list of indices per name)."""
    rows = ",\n".join(f'  "{k}": {json.dumps(list(map(int, v)))}' for k, v in splits.items())
    write_text(path, "{\n" + rows + "\n}\n")


def _index(value: object) -> int:
    if type(value) is not int:
        raise ValueError(f"{value!r} is no index")
    return value


def read_splits(path: str | os.PathLike) -> dict[str, list[int]]:
    """Read a split file.

    Raises:
      DataError: unreadable, an unknown or missing name, or an index in two splits.
    """
    check_file(path, "a split file")
    try:
        splits = json.loads(Path(path).read_text(encoding="utf-8"))
        splits = {str(k): [_index(i) for i in v] for k, v in splits.items()}
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as err:
        raise DataError(
            str(path),
            got=f"an unreadable file ({err})",
            expected='a JSON object such as {"train": [0, 1], "validation": [2]}',
            code=Code.DAMAGED,
        ) from err
    if not {"train", "validation"} <= set(splits) <= set(SPLITS):
        raise DataError(
            str(path), got=f"splits {sorted(splits)}", expected=str(SPLITS), code=Code.SPLIT
        )
    if not all(splits[k] for k in ("train", "validation")):
        raise DataError(
            str(path), got="an empty split", expected="at least one index", code=Code.SPLIT
        )
    every = [i for v in splits.values() for i in v]
    if min(every) < 0:
        raise DataError(
            str(path), got=f"index {min(every)}", expected="zero or more", code=Code.SPLIT
        )
    if len(set(every)) != len(every):
        raise DataError(
            str(path), got="an index in two splits", expected="disjoint splits", code=Code.SPLIT
        )
    return splits


def check_splits(dataset: Dataset, splits: Mapping[str, Sequence[int]]) -> None:
    """Raise unless the splits fit the data set and its training split knows every element.

    Raises:
      DataError: an index beyond the set, no training or validation structures, or an element of
        the validation or test split that no training structure has.
    """
    highest = max((i for part in splits.values() for i in part), default=-1)
    if highest >= len(dataset):
        raise DataError(
            "splits",
            got=f"index {highest}",
            expected=f"indices below {len(dataset)}",
            hint="Does this split file belong to this data set?",
            code=Code.SPLIT,
        )
    for name in ("train", "validation"):
        if not splits.get(name):
            raise DataError(
                f"{name} split", got="an empty split", expected="structures", code=Code.SPLIT
            )
    elements = {k: {z for i in v for z in dataset.structures[i].numbers} for k, v in splits.items()}
    for name, found in elements.items():
        unseen = [symbol(z) for z in sorted(found - elements["train"])]
        if unseen:
            raise DataError(
                f"{name} split",
                got=", ".join(unseen),
                expected="only elements of the training split",
                hint="Split again, or leave these molecules out.",
                code=Code.SPLIT,
            )

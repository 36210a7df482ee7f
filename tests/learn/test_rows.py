import numpy as np
import pytest

from opml_jax.learn.rows import Rows, Selected
from opml_jax.models.op2prop.descriptors import Cache


@pytest.fixture
def array():
    return np.random.default_rng(0).normal(size=(7, 3, 2)).astype(np.float32)


@pytest.mark.parametrize("index", [slice(1, 3), [2, 0], np.array([1, 1])])
def test_a_selection_reads_as_the_array_it_stands_for(array, index):
    picked, factor = np.array([6, 1, 4, 0]), np.arange(4.0).reshape(4, 1, 1) + 0.5
    whole = array[picked] * factor.astype(np.float32)
    selected = Selected(Selected(array, picked), factor=factor)
    assert (selected.shape, selected.dtype, len(selected)) == (whole.shape, whole.dtype, 4)
    np.testing.assert_array_equal(selected[index], whole[index])
    np.testing.assert_array_equal(np.asarray(selected), whole)


def test_any_subset_of_a_large_cache_is_read_row_by_row(array, tmp_path):
    rows = Rows(len(array), tmp_path / "rows")
    rows.append({"dx": array})
    large = np.load(tmp_path / "rows" / "dx.npy", mmap_mode="r")
    cache = Cache(np.zeros((7, 2)), large, {}, np.zeros((7, 2, 1)))
    index = [5, 0, 3, 2]
    part = cache.subset(index)
    assert isinstance(part.dx, Selected)  # nothing was copied
    np.testing.assert_array_equal(part.subset([1, 3]).dx, array[[0, 2]])

"""Words against the products they spell."""

import numpy as np
import pytest

from opml_jax.errors import ConfigError
from opml_jax.operators.words import check_words, every_word, spell

ROUND_OFF = 1e-12  # products of matrices of elements below 10


def test_words_are_symmetrised_products():
    rng = np.random.default_rng(0)
    a, b, c = (x + x.swapaxes(1, 2) for x in rng.normal(size=(3, 2, 5, 5)))
    letters = {"A": a, "B": b, "C^-1": c}
    found = spell(("A", "A B", "A B A", "B C^-1 A", "A C^-1 B", "A A A"), letters)
    bca = b @ c @ a
    symmetric = 0.5 * (bca + bca.swapaxes(1, 2))
    wanted = [a, 0.5 * (a @ b + b @ a), a @ b @ a, symmetric, symmetric, a @ a @ a]
    for x, y in zip(found, wanted, strict=True):
        assert np.abs(x - y).max() < 1e-13 * np.abs(y).max()
        assert np.abs(x - np.swapaxes(x, 1, 2)).max() < 1e-13 * np.abs(y).max()


def test_stacks_of_operators_are_words_each():
    rng = np.random.default_rng(1)
    s, e = rng.normal(size=(2, 5, 5)), rng.normal(size=(3, 2, 5, 5))
    s, e = (x + x.swapaxes(-1, -2) for x in (s, e))
    plain, product, around = spell(("E", "E S", "S E S"), {"S": s, "E": e})
    assert np.array_equal(plain, e)
    for i in range(3):
        assert np.abs(product[i] - 0.5 * (e[i] @ s + s @ e[i])).max() < ROUND_OFF
        assert np.abs(around[i] - s @ e[i] @ s).max() < ROUND_OFF


def test_every_word_has_no_mirror_images():
    words = every_word("STW", 3)
    assert len(words) == 3 + 6 + 18
    spelled = [tuple(w.split()) for w in words]
    assert all(w == w[::-1] or w[::-1] not in spelled for w in spelled)
    assert {min(w, w[::-1]) for w in spelled} == set(spelled)


@pytest.mark.parametrize("word", ["V V", "", "S  ^-1"])
def test_unknown_letters_are_named(word):
    with pytest.raises(ConfigError, match="products of S, W"):
        check_words("words", (word,), ("S", "W"))

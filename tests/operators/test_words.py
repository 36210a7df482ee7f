"""Words against the products they spell."""

import numpy as np
import pytest

from opml_jax.errors import ConfigError
from opml_jax.operators.words import check_words, every_word, spell


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

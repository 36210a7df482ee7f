"""Words: products of operators written as text, such as ``"V S^-1 V"``.

Letters are names of operators, parted by spaces. A word that reads differently backwards stands
for the symmetric part of its product.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import jax.numpy as jnp

from ..errors import ConfigError, nearest
from ..numerics import Array, matmul


def every_word(letters: Sequence[str], length: int) -> tuple[str, ...]:
    """Every word of up to ``length`` letters, one of each pair that reads as the other backwards.

    >>> every_word("ST", 2)
    ('S', 'T', 'S S', 'S T', 'T T')
    """
    every = (w for n in range(length) for w in itertools.product(letters, repeat=n + 1))
    rank = {x: i for i, x in enumerate(letters)}
    return tuple(" ".join(w) for w in every if [rank[x] for x in w] <= [rank[x] for x in w[::-1]])


def check_words(where: str, words: Sequence[str], letters: Sequence[str]) -> None:
    """Raise :class:`ConfigError` for a word with a letter that is not one of ``letters``."""
    for word in words:
        unknown = [x for x in word.split() if x not in letters]
        if unknown or not word.strip():
            raise ConfigError(
                where,
                got=f"the word {word!r}",
                expected=f"products of {', '.join(letters)}, parted by spaces",
                hint=nearest(unknown[0], letters) if unknown else None,
            )


def spell(words: Sequence[str], operators: Mapping[str, Array]) -> list[Array]:
    """The symmetric matrix of each word; parts of products are computed once.

    Args:
      words: letters parted by spaces.
      operators: symmetric matrices ``(..., nao, nao)`` by letter; leading axes are broadcast.
    """
    known: dict[tuple[str, ...], Array] = {(k,): v for k, v in operators.items()}

    def cut(letters: tuple[str, ...]) -> tuple[int, int]:
        """Matrices to be multiplied for a product, and where it is cut in two for the fewest."""
        if letters in known or letters[::-1] in known:
            return 0, 0
        n = max(math.prod(operators[x].shape[:-2]) for x in letters)
        halves = [(cut(letters[:i])[0] + cut(letters[i:])[0], i) for i in range(1, len(letters))]
        cost, place = min(halves)
        return cost + n, place

    def product(letters: tuple[str, ...]) -> Array:
        if letters not in known:
            if letters[::-1] in known:
                return jnp.matrix_transpose(known[letters[::-1]])
            place = cut(letters)[1]
            known[letters] = matmul(product(letters[:place]), product(letters[place:]))
        return known[letters]

    out = []
    for word in words:
        letters = tuple(word.split())
        x = product(letters)
        out.append(x if len(letters) == 1 else 0.5 * (x + jnp.matrix_transpose(x)))
    return out

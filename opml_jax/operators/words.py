"""Words: products of operators written as text, such as ``"V S^-1 V"``.

Letters are names of operators, parted by spaces. A word that reads differently backwards stands
for the symmetric part of its product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax.numpy as jnp

from ..errors import ConfigError, nearest, refusal
from ..numerics import Array, matmul


def check_words(where: str, words: Sequence[str], letters: Sequence[str]) -> None:
    """Raise :class:`ConfigError` for a word with a letter that is not one of ``letters``."""
    for word in words:
        unknown = [x for x in word.split() if x not in letters]
        if unknown or not word.strip():
            raise ConfigError(
                refusal(
                    where,
                    got=f"the word {word!r}",
                    expected=f"products of {', '.join(letters)}, parted by spaces",
                    hint=nearest(unknown[0], letters) if unknown else None,
                )
            )


def spell(words: Sequence[str], operators: Mapping[str, Array]) -> list[Array]:
    """The symmetric matrix of each word; products that begin alike are computed once.

    Args:
      words: letters parted by spaces.
      operators: symmetric matrices ``(..., nao, nao)`` by letter.
    """
    known: dict[tuple[str, ...], Array] = {(k,): v for k, v in operators.items()}

    def product(letters: tuple[str, ...]) -> Array:
        if letters not in known:
            if letters[::-1] in known:
                return jnp.matrix_transpose(known[letters[::-1]])
            known[letters] = matmul(product(letters[:-1]), operators[letters[-1]])
        return known[letters]

    out = []
    for word in words:
        letters = tuple(word.split())
        x = product(letters)
        out.append(x if len(letters) == 1 else 0.5 * (x + jnp.matrix_transpose(x)))
    return out

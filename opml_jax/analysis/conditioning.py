"""How well posed a linear fit on a set of features is."""

from __future__ import annotations

import numpy as np

from ..errors import OpmlError, refusal


def condition_number(features: np.ndarray, *, standardise: bool = True) -> float:
    """Ratio of the largest to the smallest singular value of a feature matrix.

    A least-squares fit loses about this factor in precision (its normal equations, the square).
    Powers of V are far worse than Chebyshev polynomials of it, which span the same space.

    Args:
      features: ``(..., n_features)``; leading axes are samples, of which more than ``n_features``
        are needed.
      standardise: scale each feature to unit norm first, which rescaling can repair for free.

    Raises:
      OpmlError: fewer samples than features.
    """
    x = np.asarray(features, float)
    x = x.reshape(-1, x.shape[-1])
    if len(x) < x.shape[1]:
        expected = f"at least {x.shape[1]}, one for each feature"
        raise OpmlError(refusal("samples", got=len(x), expected=expected))
    if standardise:
        norm = np.linalg.norm(x, axis=0)
        x = x[:, norm > 0] / norm[norm > 0]
    s = np.linalg.svd(x, compute_uv=False)
    return float(s[0] / s[-1]) if s[-1] > 0 else float("inf")

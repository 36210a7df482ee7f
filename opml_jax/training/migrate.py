"""Configurations of version 0.1 in today's form.

They had a section for each kind of model, of which one counted, and the settings of its training
beside them. Each family knows what was its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError
from ..models.family import families, family

GONE = ("network", "operator", "density", "effective", "optim", "losses", "targets")
"""Keys at the top that there are no more."""


def is_old(tree: Mapping[str, Any]) -> bool:
    """Whether a configuration is in the form of version 0.1."""
    return any(key in tree for key in GONE)


def migrated(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The same configuration in today's form, as a mapping.

    Raises:
      ConfigError: a model that there is no more.
    """
    for name in families():
        if (model := family(name).migrated(tree)) is not None:
            rest = {k: tree[k] for k in ("data", "seed") if k in tree}
            return {**rest, "model": {"family": name, **model}}
    got = "an operator network, which was removed (the closed form is better)"
    hint = "opml config template rmd17-ethanol prints what learns energies and forces."
    raise ConfigError("network", got=got, expected="a family that there is", hint=hint)

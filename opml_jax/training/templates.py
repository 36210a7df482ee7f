"""Configurations to start from, one an experiment; each family has its own."""

from __future__ import annotations

import functools

from ..models.family import families, family
from .config import DataConfig, TrainConfig, explained


@functools.cache
def templates() -> dict[str, tuple[str, TrainConfig]]:
    """What each is for, and the configuration, by name; the first is the default."""
    return {
        name: (own.about, TrainConfig(DataConfig(**own.data), own.model))
        for of_family in families()
        for name, own in family(of_family).templates().items()
    }


def template(name: str = "water") -> str:
    """One of :func:`templates` as YAML, every key explained."""
    about, config = templates()[name]
    return f"# {about}\n{explained(config)}"

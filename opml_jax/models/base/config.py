"""What every family's configuration has in common."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Self


class ModelConfig:
    """The configuration of a model: of its pure functions, and in ``fit`` of its training.

    A family's configuration is a frozen dataclass of the fields of its functions, with a field
    ``fit`` at the end, which is None in a model's definition.
    """

    family: ClassVar[str]
    chosen: ClassVar[tuple[str, ...]] = ()
    """Keys that the validation set chooses where they are None."""
    fit: Any

    @property
    def functions(self) -> Self:
        """The configuration of the pure functions alone: every ``fit`` is None.

        Models that were trained differently have the same functions, and share compiled programs.
        """
        return _without_fits(self)

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of what is learned, for cards."""
        raise NotImplementedError

    @property
    def doubts(self) -> bool:
        """Whether the trained model has standard deviations."""
        return False

    def check(self) -> None:
        """Refuse functions and fits that do not go together; of no model without a fit.

        Raises:
          ConfigError: they do not.
        """


def _without_fits(config: Any) -> Any:
    changes = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name == "fit":
            changes["fit"] = None
        elif dataclasses.is_dataclass(value):
            changes[field.name] = _without_fits(value)
    return dataclasses.replace(config, **changes)

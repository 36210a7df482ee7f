"""Settings of every descent, whichever family of models descends."""

from __future__ import annotations

import dataclasses

from ..errors import ConfigError, at_least, one_of


@dataclasses.dataclass(frozen=True)
class DescentConfig:
    """How networks are trained: AdamW on what the closed form leaves.

    Attributes:
      epochs: Passes over the training set; 0 keeps the closed form alone.
      patience: Training stops after so many epochs that did not improve validation; 0 means never.
      batch_size: Structures in a step.
      accumulate: Batches whose gradients are averaged before each step, so that a step sees so many
        times batch_size structures in the memory of one batch.
      learning_rate: Peak of the learning rate.
      schedule: How the learning rate falls to a hundredth after all epochs: cosine or exponential;
        or constant, if it is not to fall.
      warm_up: Share of all steps, at the beginning, in which the learning rate rises from zero.
      weight_decay: Weight decay of AdamW.
      clip: Largest global norm of a gradient.
      ema: Decay, a step, of the exponential moving average of the weights, which is what is kept.
    """

    epochs: int = 150
    patience: int = 0
    batch_size: int = 16
    accumulate: int = 1
    learning_rate: float = 3e-3
    schedule: str = "cosine"
    warm_up: float = 0.0
    weight_decay: float = 1e-4
    clip: float = 10.0
    ema: float = 0.99

    def __post_init__(self):
        where = "fit"
        for name in ("batch_size", "accumulate", "learning_rate", "clip"):
            positive(where, self, name)
        at_least(where, self, ("epochs", "patience", "weight_decay"))
        one_of(f"{where}.schedule", self.schedule, ("cosine", "exponential", "constant"))
        if not 0 <= self.warm_up < 1:
            expected = "a share of the steps, below 1"
            raise ConfigError(f"{where}.warm_up", got=self.warm_up, expected=expected)
        if not 0 <= self.ema < 1:
            raise ConfigError(f"{where}.ema", got=self.ema, expected="between 0 and 1")


def positive(where: str, config: object, name: str) -> None:
    """Refuse a value that is not above zero.

    Raises:
      ConfigError: it is not.
    """
    if not (value := getattr(config, name)) > 0:
        raise ConfigError(f"{where}.{name}", got=value, expected="a positive number")

"""Training: configuration, cached descriptors, closed-form start, residual network, metrics."""

from .config import TrainConfig as TrainConfig
from .config import load_config as load_config
from .metrics import check_compatible as check_compatible
from .metrics import evaluate as evaluate
from .trainer import train as train

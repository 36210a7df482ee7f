"""Training: configuration, the run of any family, cards, metrics, templates, learning curves."""

from .config import TrainConfig as TrainConfig
from .config import load_config as load_config
from .metrics import check_compatible as check_compatible
from .metrics import evaluate as evaluate
from .run import Trained as Trained
from .run import train as train

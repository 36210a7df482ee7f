"""What every family of models stands on: configuration, definition, model, model of energies."""

from .config import ModelConfig as ModelConfig
from .definition import Definition as Definition
from .definition import Params as Params
from .energy import EnergyDefinition as EnergyDefinition
from .energy import EnergyModel as EnergyModel
from .model import Model as Model

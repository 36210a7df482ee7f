"""Density2Prop: energies and forces as functions of a predicted electron density."""

from .config import Density2PropConfig as Density2PropConfig
from .config import Density2PropFit as Density2PropFit
from .config import Density2PropInputs as Density2PropInputs
from .family import FAMILY as FAMILY
from .functions import Density2Prop as Density2Prop
from .model import Density2PropModel as Density2PropModel

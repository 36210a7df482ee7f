"""Op2Prop: energies, forces, moments and polarizabilities as functions of an operator."""

from .config import Op2PropConfig as Op2PropConfig
from .config import Op2PropFit as Op2PropFit
from .family import FAMILY as FAMILY
from .functions import Op2Prop as Op2Prop
from .model import Op2PropModel as Op2PropModel

"""Op2Op: Fock and density matrices, and what follows from them."""

from .config import ObservablesFit as ObservablesFit
from .config import Op2OpConfig as Op2OpConfig
from .config import Op2OpFit as Op2OpFit
from .config import Op2OpNetworkConfig as Op2OpNetworkConfig
from .config import Op2OpNetworkFit as Op2OpNetworkFit
from .config import OperatorLosses as OperatorLosses
from .family import FAMILY as FAMILY
from .functions import Op2Op as Op2Op
from .model import Op2OpModel as Op2OpModel

"""Models: pure functions of parameters and structures, their closed-form parts, their files."""

from .density import Op2Density as Op2Density
from .density import Op2DensityConfig as Op2DensityConfig
from .density2prop import Density2Prop as Density2Prop
from .density2prop import Density2PropModel as Density2PropModel
from .density_model import DensityModel as DensityModel
from .density_network import Op2DensityNetworkConfig as Op2DensityNetworkConfig
from .files import load_model as load_model
from .files import pretrained as pretrained
from .files import save_model as save_model
from .model import Model as Model
from .op2op import Op2Op as Op2Op
from .op2op_config import Op2OpConfig as Op2OpConfig
from .op2op_network import Op2OpNetworkConfig as Op2OpNetworkConfig
from .op2prop import Op2Prop as Op2Prop
from .op2prop import Op2PropConfig as Op2PropConfig
from .operator_model import OperatorModel as OperatorModel
from .operator_network import OperatorNetwork as OperatorNetwork
from .operator_network import OperatorNetworkConfig as OperatorNetworkConfig

"""Op2Density: electron densities in an auxiliary basis, by symmetry-adapted kernels."""

from .config import Op2DensityConfig as Op2DensityConfig
from .config import Op2DensityFit as Op2DensityFit
from .config import Op2DensityNetworkConfig as Op2DensityNetworkConfig
from .config import Op2DensityNetworkFit as Op2DensityNetworkFit
from .family import FAMILY as FAMILY
from .functions import Op2Density as Op2Density
from .model import Op2DensityModel as Op2DensityModel

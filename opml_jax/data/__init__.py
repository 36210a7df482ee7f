"""Structures and labels: readers, the HDF5 store, and the PySCF runner that makes labels."""

from .dataset import Dataset as Dataset
from .dataset import concatenate as concatenate
from .packaged import bundled as bundled
from .readers import read_dataset as read_dataset
from .readers import read_structures as read_structures
from .splits import random_split as random_split
from .splits import read_splits as read_splits

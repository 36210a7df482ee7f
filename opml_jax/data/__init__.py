"""Structures and labels: readers, the HDF5 store, and the PySCF runner that makes labels."""

from .dataset import Dataset as Dataset
from .dataset import concatenate as concatenate
from .duplicates import duplicates as duplicates
from .duplicates import leakage as leakage
from .loader import LabelledBatch as LabelledBatch
from .loader import Loader as Loader
from .packaged import bundled as bundled
from .readers import label_names as label_names
from .readers import read_dataset as read_dataset
from .readers import read_structures as read_structures
from .splits import check_splits as check_splits
from .splits import random_split as random_split
from .splits import read_splits as read_splits
from .stored import StoredLabel as StoredLabel

"""Looking at operators and features: what they resolve, how far they reach."""

from .body_order import body_order as body_order
from .degeneracy import DegeneratePair as DegeneratePair
from .degeneracy import degeneracy as degeneracy
from .degeneracy import degenerate_pairs as degenerate_pairs
from .locality import block_norms as block_norms
from .matrix_cutoff import cutoff_weights as cutoff_weights
from .matrix_cutoff import matrix_cutoff_study as matrix_cutoff_study

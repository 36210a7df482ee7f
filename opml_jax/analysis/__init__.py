"""Looking at operators and features: what they resolve, how far they reach, how well posed."""

from .body_order import body_order as body_order
from .conditioning import condition_number as condition_number
from .degeneracy import DegeneratePair as DegeneratePair
from .degeneracy import degeneracy as degeneracy
from .degeneracy import degeneracy_table as degeneracy_table
from .degeneracy import degenerate_pairs as degenerate_pairs
from .locality import block_norms as block_norms
from .locality import cutoff_study as cutoff_study
from .matrix_cutoff import cutoff_weights as cutoff_weights
from .matrix_cutoff import matrix_cutoff_study as matrix_cutoff_study
from .plots import plot_block_norms as plot_block_norms
from .plots import plot_cutoff_study as plot_cutoff_study

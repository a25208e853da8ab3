"""What all statistics here share: the level of tests and intervals, the power of what counts as detectable, arrays."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

LEVEL: Final = 0.05
POWER: Final = 0.80
"""The share of tries in which a difference is found that counts as detectable."""

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

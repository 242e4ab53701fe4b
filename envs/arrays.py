"""Names for the array types that the game is made of."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Observations = npt.NDArray[np.float32]

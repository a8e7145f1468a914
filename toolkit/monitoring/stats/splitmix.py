"""The SplitMix64 generator: random bits from whole numbers, the same on every machine."""

import numpy as np
from numpy.typing import NDArray

GAMMA = np.uint64(0x9E3779B97F4A7C15)  # from one state of the generator to the next


def splitmix64(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """64 random bits for each state of the generator.

    Examples
    --------
    >>> f"{splitmix64(np.array([0], np.uint64))[0]:x}"
    'e220a8397b1dcdaf'

    References
    ----------
    Steele, G. L., Lea, D. and Flood, C. H. (2014). Fast splittable pseudorandom number generators.
    ACM SIGPLAN Notices 49 (10), 453-472.
    """
    z = state + GAMMA
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))

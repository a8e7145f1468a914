"""The generator against published numbers."""

import numpy as np

from toolkit.monitoring.stats.splitmix import GAMMA, splitmix64


def test_splitmix64_gives_the_published_numbers():
    states = np.uint64(1234567) + np.arange(3, dtype=np.uint64) * GAMMA
    assert splitmix64(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]

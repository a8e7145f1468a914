"""The baseline of a model version: its predictions for held-out images, the reference of monitor and promotion gate.

A module of its own, so that a notebook can monitor a model without importing torch.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import BundleError
from toolkit.statistics.calibration import CALIBRATION_BINS, CalibrationBins, calibration_bins

MAX_SAMPLE = 10_000  # images kept in a baseline, as many as the medium window


@dataclass(frozen=True)
class Baseline:
    """Probabilities, labels and input statistics of the held-out images; a BundleError if they do not fit each other.

    Examples
    --------
    >>> import numpy as np
    >>> baseline = Baseline(("cat", "dog"), np.array([[0.9, 0.1], [0.6, 0.4]]), np.array([0, 1]))
    >>> baseline.accuracy, baseline.size
    (0.5, 2)
    >>> Baseline.from_bytes(baseline.to_bytes()).classes
    ('cat', 'dog')
    """

    classes: tuple[str, ...]  # in output order, K of them
    # float16 (N, K), rounded like those in the store of predictions, so that reference and window are binned alike
    probabilities: NDArray[Any]
    labels: NDArray[Any]  # int64 (N,), in 0..K-1
    # str (N,), the content hash of each image; two versions are compared on those they share
    hashes: NDArray[Any] = field(default_factory=lambda: np.zeros(0, dtype="U1"))
    # float32 (N,) for each input statistic (``toolkit.images.decoding.STATISTICS``)
    statistics: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "probabilities", np.asarray(self.probabilities, dtype=np.float16))
        object.__setattr__(self, "labels", np.asarray(self.labels, dtype=np.int64))
        n, k = len(self.labels), len(self.classes)
        if self.probabilities.shape != (n, k):
            raise BundleError(f"a baseline of {n} labels and {k} classes cannot hold {self.probabilities.shape}")
        if not np.isfinite(self.probabilities).all():
            raise BundleError("a baseline must hold finite probabilities")
        if n and not (self.labels.min() >= 0 and self.labels.max() < k):
            raise BundleError(f"the labels of a baseline must lie in 0..{k - 1}")
        lengths = {"hashes": len(self.hashes) or n} | {name: len(column) for name, column in self.statistics.items()}
        for name, length in lengths.items():
            if length != n:
                raise BundleError(f"a baseline of {n} images has {length} values of {name}")

    @property
    def size(self) -> int:
        """Number of held-out images."""
        return len(self.labels)

    @property
    def predicted(self) -> NDArray[Any]:
        """int64 (N,), the predicted class of each image."""
        return np.asarray(np.argmax(self.probabilities, axis=1))

    @property
    def confidence(self) -> NDArray[Any]:
        """float32 (N,), the largest probability of each image."""
        return np.asarray(self.probabilities.max(axis=1), dtype=np.float32)

    @property
    def accuracy(self) -> float:
        """Share of held-out images that are classified correctly; NaN when there is none."""
        return float((self.predicted == self.labels).mean()) if self.size else float("nan")

    @property
    def calibration_error(self) -> float:
        """The expected calibration error, of 15 bins; NaN when there is no image.

        >>> Baseline(("cat", "dog"), np.array([[0.75, 0.25]] * 2), np.array([0, 1])).calibration_error
        0.25
        """
        return self.calibration().error if self.size else float("nan")

    def calibration(self, bins: int = CALIBRATION_BINS) -> CalibrationBins:
        """Accuracy by confidence, in bins of equal width."""
        return calibration_bins(self.probabilities.astype(np.float32), self.labels, bins)

    def to_bytes(self) -> bytes:
        """The baseline as an ``.npz`` file."""
        buffer = io.BytesIO()
        columns = {f"statistic_{name}": np.asarray(column, np.float32) for name, column in self.statistics.items()}
        np.savez_compressed(
            buffer,
            allow_pickle=False,
            classes=np.array(self.classes),
            probabilities=self.probabilities,
            labels=self.labels,
            hashes=self.hashes,
            **columns,
        )
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read an ``.npz`` file; arrays that would need pickle are refused."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                arrays = dict(file)
            return cls(
                classes=tuple(str(name) for name in arrays["classes"]),
                probabilities=arrays["probabilities"],
                labels=arrays["labels"],
                hashes=arrays["hashes"],
                statistics={
                    name.removeprefix("statistic_"): column
                    for name, column in arrays.items()
                    if name.startswith("statistic_")
                },
            )
        except BundleError:
            raise
        except Exception as error:  # noqa: BLE001  zipfile, numpy and zlib each raise kinds of their own on damaged files
            raise BundleError(f"the baseline cannot be read: {error}") from None

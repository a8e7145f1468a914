"""Choice of the model version that a monitor logs and reads."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from toolkit.bundle.baseline import Baseline
from toolkit.cli.safe_names import display_name
from toolkit.errors import SettingsError, suggest
from toolkit.monitoring.store.model_versions import ModelVersion
from toolkit.monitoring.store.predictions import PredictionStore

UNNAMED_VERSION = "unversioned"  # of a model that is logged without a name


class ModelSelection:
    """The version that this process serves, else the requested one, else the one served last by the store."""

    def __init__(self, store: PredictionStore, clock: Callable[[], float], requested: str | None) -> None:
        self._store, self._clock, self._requested = store, clock, requested
        self._secondary: dict[str, ModelVersion] = {}  # logged beside the served one
        self._read: ModelVersion | None = None  # by a monitor that serves none
        self.served: ModelVersion | None = None
        self.unregistered: ModelVersion | None = None  # served, and not in the store yet

    @property
    def version(self) -> str | None:
        """Name of the selected version; None while the store is empty."""
        model = self.served or self._read
        return model.version if model else self._requested

    def serve(self, version: str | None, baseline: Baseline | None, classes: Sequence[str] | None) -> None:
        """Select a version that this process serves; one without a name is the requested one."""
        self.served = self._new(version or self._requested or UNNAMED_VERSION, baseline, classes)

    def current(self) -> ModelVersion | None:
        """The version to read; None while the store is empty."""
        if self.served is not None:
            return self.served
        self._read = self._store.versions.select(self._requested, self._read)
        return self._read

    def of_prediction(self, probabilities: ArrayLike | Mapping[str, float], version: str | None) -> ModelVersion:
        """The version of a prediction; classes without names are called 0, 1, 2 ..."""
        served = self.served
        if served is None:
            names = list(probabilities) if isinstance(probabilities, Mapping) else range(np.size(probabilities))
            new = self._new(self._requested or version or UNNAMED_VERSION, None, [str(name) for name in names])
            served = self.served = replace(self._read, served_at=self._clock()) if self._read else new
        if version is None or version == served.version:
            return served
        return self._secondary.setdefault(version, ModelVersion(version, served.classes))

    def _new(self, version: str, baseline: Baseline | None, classes: Sequence[str] | None) -> ModelVersion:
        if baseline is not None and classes is not None and tuple(classes) != baseline.classes:
            raise SettingsError("the baseline has other classes than the model, or in another order")
        names = baseline.classes if baseline is not None else tuple(classes or ())
        if len(set(names)) != len(names) or not names:
            raise SettingsError(f"model version {version} needs class names that differ, got {suggest(names)}")
        if odd := [name for name in names if any("\ud800" <= letter <= "\udfff" for letter in name)]:
            raise SettingsError(f"the class name {display_name(odd[0])!r} is no text: it is not UTF-8")
        return ModelVersion(display_name(version), names, baseline, self._clock())

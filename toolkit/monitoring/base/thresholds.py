"""Thresholds of drift, degradation and alerts."""

from dataclasses import dataclass, fields

from toolkit.errors import SettingsError, suggest

ALERTED_METRICS = ("accuracy", "confidence_distribution", "prediction_distribution", "non_finite")  # that raise alerts
EVALUATED_WINDOWS = ("short", "medium")  # in which alerts are evaluated
MAX_FALSE_ALARMS = 10_000  # per million predictions
LEVELS = ("ok", "warning", "critical", "immediate")  # mildest first


@dataclass(frozen=True)
class Thresholds:
    """Thresholds of drift, degradation and alerts; checked when made.

    Parameters
    ----------
    alpha
        Chance of a false "drift" among all tests of one drift report.
    max_false_alarms_per_million
        Alerts without a cause that may be raised in a million predictions, on average, however often they are
        evaluated. A test at 0.05 every 100 predictions raises 8,000.
    confidence
        One-sided confidence at which a degradation counts as confirmed.
    ks, total_variation, mean_shift
        Minimum effects: Kolmogorov-Smirnov D, share of predictions that changed class, shift of the mean in
        standard deviations.
    warning, critical, immediate
        Relative drop of accuracy above which each level begins.
    minimum_predictions, minimum_labels
        Sample sizes below which a test answers ``insufficient_data``.
    trust_labels
        Whether all labels count as a random sample, which may confirm ``immediate`` and trigger reactions.
    ignore
        Metrics that raise no alert, in both windows (``"accuracy"``) or in one (``"accuracy/short"``), such as a
        mix of classes that changes every day. Reports still show them.

    Raises
    ------
    SettingsError
        When a value is out of range, or the levels do not grow.

    Examples
    --------
    >>> thresholds = Thresholds()
    >>> thresholds.level(0.04), thresholds.level(0.12), thresholds.level(0.5)
    ('ok', 'critical', 'immediate')
    >>> daily = Thresholds(ignore=("prediction_distribution/short",))
    >>> daily.ignores("prediction_distribution", "short"), daily.ignores("prediction_distribution", "medium")
    (True, False)
    >>> Thresholds(alpha=2)
    Traceback (most recent call last):
        ...
    toolkit.errors.SettingsError: alpha must lie between 0 and 1, got 2
    """

    alpha: float = 0.05
    max_false_alarms_per_million: float = 1.0
    confidence: float = 0.99
    ks: float = 0.05
    total_variation: float = 0.05
    mean_shift: float = 0.2
    warning: float = 0.05
    critical: float = 0.10
    immediate: float = 0.20
    minimum_predictions: int = 100
    minimum_labels: int = 50
    trust_labels: bool = False
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.trust_labels, bool):
            raise SettingsError(f"trust_labels must be True or False, got {self.trust_labels!r}")
        choices = [*ALERTED_METRICS, *(f"{one}/{window}" for one in ALERTED_METRICS for window in EVALUATED_WINDOWS)]
        for name in self.ignore:
            if name not in choices:
                raise SettingsError(f"ignore must be one of {suggest(choices, name)}; got {name!r}")
        for name in (entry.name for entry in fields(self) if entry.name not in ("trust_labels", "ignore")):
            value = getattr(self, name)
            kept, rule = 0 < value < 1, "lie between 0 and 1"
            if name.startswith("minimum"):
                kept, rule = value >= 2, "be at least 2"
            elif name == "max_false_alarms_per_million":
                kept, rule = 0 < value <= MAX_FALSE_ALARMS, f"be more than 0 and at most {MAX_FALSE_ALARMS:,}"
            elif name == "mean_shift":
                kept, rule = value > 0, "be more than 0"
            if not kept:
                raise SettingsError(f"{name} must {rule}, got {value:g}")
        if not self.warning < self.critical < self.immediate:
            raise SettingsError("the levels must grow from warning over critical to immediate")

    @staticmethod
    def parse_ignore(text: str) -> tuple[str, ...]:
        """The values of ``ignore`` in a comma-separated list.

        >>> Thresholds.parse_ignore("prediction_distribution, confidence_distribution/short")
        ('prediction_distribution', 'confidence_distribution/short')
        """
        return tuple(name for part in text.split(",") if (name := part.strip()))

    def ignores(self, metric: str, window: str) -> bool:
        """Whether a metric raises no alert in a window."""
        return metric in self.ignore or f"{metric}/{window}" in self.ignore

    def level(self, drop: float) -> str:
        """The level that a relative drop of accuracy reaches."""
        reached = [name for name in LEVELS[1:] if drop > self.threshold(name)]
        return reached[-1] if reached else LEVELS[0]

    def threshold(self, level: str) -> float:
        """The relative drop above which a level begins."""
        return {"warning": self.warning, "critical": self.critical, "immediate": self.immediate}[level]

    @staticmethod
    def severity(level: str) -> int:
        """Rank of a level, 0 for ``ok``.

        >>> Thresholds.severity("critical")
        2
        """
        if level not in LEVELS:
            raise SettingsError(f"there is no level {level!r}; the levels are {suggest(LEVELS, level)}")
        return LEVELS.index(level)

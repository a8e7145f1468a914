"""What one look at a window sees, and when that is worth telling somebody.

A look makes a ``Sighting`` of each metric; a ``Watch`` remembers the sightings before it and
decides. Neither touches the store, so a stream of a million predictions can be simulated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np

from toolkit.baseline import Baseline
from toolkit.monitoring import statistics
from toolkit.monitoring.drift import DriftResult, compare, p_text
from toolkit.monitoring.limits import LEVELS, Limits
from toolkit.monitoring.windows import WINDOWS, Window, reference_right

# The windows that are watched, and how many predictions or labels lie between two looks: a tenth of each.
BLOCKS = {name: size // 10 for name, size in WINDOWS.items() if size is not None}
BLOCKS_TO_RAISE = 2
LOOKS_TO_CLEAR = 3
CLEAR_BELOW = 0.6  # of the threshold that was passed, so that an alert does not flicker around it
FEWEST_OF_A_CLASS = 10  # labels of a class below which its recall is not worth naming

WHAT_TO_DO = {
    "warning": "look at recent pictures and label some of them",
    "critical": "consider going back to the version before, and retraining",
    "immediate": "go back to the version before now",
}


@dataclass(frozen=True)
class Sighting:
    """What one look saw of one metric in one window.

    Parameters
    ----------
    level
        ``ok`` or the level that the evidence reaches.
    status
        ``confirmed`` when the threshold is certainly passed, ``suspected`` when only the drop as such
        is certain, ``estimate`` when no labels are involved.
    value
        Size of the change; None when there is too little data to say.
    threshold
        The size at which each level begins.
    message
        What happened, how sure that is, since when, what changed and what to do.
    like_before
        Whether the window cannot be told from the reference at all.
    """

    metric: str
    window: str
    level: str = "ok"
    status: str = ""
    value: float | None = None
    threshold: Mapping[str, float] = field(default_factory=dict)
    message: str = ""
    like_before: bool = False

    def calm(self, level: str) -> bool:
        """Whether an alert of that level would no longer be justified."""
        if self.value is None:
            return False
        return self.value < CLEAR_BELOW * self.threshold[level] or self.like_before


def look(window: Window, reference: Baseline | None, limits: Limits, name: str) -> list[Sighting]:
    """See what a window shows, at the strict alpha that looking again and again demands.

    Examples
    --------
    >>> import numpy as np
    >>> model = Baseline(("cat", "dog"), np.tile([0.9, 0.1], (2000, 1)), np.repeat([0, 0, 0, 1], 500))
    >>> window = Window(("cat", "dog"), np.zeros(1000), np.zeros(1000, int),
    ...                 np.full(1000, np.float16(0.9)), np.repeat([0, 1], 500))
    >>> for sighting in look(window, model, Limits(), "short"):
    ...     print(sighting.metric, sighting.level, sighting.status)
    non_finite ok
    accuracy immediate confirmed
    confidence_distribution ok
    prediction_distribution ok
    mean_confidence ok
    """
    results = compare(window, reference, limits, name, limits.alarm_alpha)
    inputs = [result for result in results if result.family == "input" and result.drifted]
    answers = [result for result in results if result.family == "model" and result.metric != "accuracy"]
    return [
        _non_finite(window, limits, name),
        _accuracy(window, reference, limits, name),
        *(_drift(result, inputs, window, reference, limits) for result in answers),
    ]


class Decision(NamedTuple):
    """What to do about a metric: ``raise`` an alert at a level, ``clear`` the one that stands, or ``wait``."""

    action: str
    level: str = "ok"
    status: str = ""


@dataclass
class _Streak:
    held: dict[str, int] = field(default_factory=dict)  # blocks in a row at this level or above
    calm: int = 0  # looks in a row


class Watch:
    """Decide which sightings become alerts: not the first one, and not the same one twice.

    An alert is raised after two blocks in a row at its level, at once when the level is
    ``immediate``; raised again only when it gets worse or certain; and cleared after three looks in
    a row below 0.6 of its threshold. A look at more than one block of news counts as so many.

    Examples
    --------
    >>> watch = Watch()
    >>> bad = Sighting("accuracy", "short", "warning", "confirmed", 0.08, {"warning": 0.05})
    >>> good = Sighting("accuracy", "short", value=0.01, threshold={"warning": 0.05})
    >>> [watch.decide("1", bad, None).action for _ in range(2)]
    ['wait', 'raise']
    >>> [watch.decide("1", good, ("warning", "confirmed")).action for _ in range(3)]
    ['wait', 'wait', 'clear']
    """

    def __init__(self) -> None:
        self._streaks: dict[tuple[str, str, str], _Streak] = {}

    def decide(self, version: str, sighting: Sighting, standing: tuple[str, str] | None, blocks: int = 1) -> Decision:
        """Take one more sighting into account.

        Parameters
        ----------
        version
            The model version; each has streaks of its own.
        standing
            Level and status of the alert that stands for this metric and window, None when there is none.
        blocks
            How many blocks of predictions or labels came since the look before.
        """
        if sighting.value is None:  # too little data is neither good news nor bad news
            return Decision("wait")
        streak = self._streaks.setdefault((version, sighting.metric, sighting.window), _Streak())
        reached = LEVELS.index(sighting.level)
        for rank, level in enumerate(LEVELS[1:], start=1):
            streak.held[level] = streak.held.get(level, 0) + blocks if rank <= reached else 0
        streak.calm = streak.calm + 1 if standing is not None and sighting.calm(standing[0]) else 0
        if streak.calm >= LOOKS_TO_CLEAR:
            streak.calm = 0
            return Decision("clear")
        due = [level for level in LEVELS[1:] if streak.held[level] >= (1 if level == "immediate" else BLOCKS_TO_RAISE)]
        if due and (standing is None or _rank(due[-1], sighting.status) > _rank(*standing)):
            return Decision("raise", due[-1], sighting.status)
        return Decision("wait")


def worth_adding(sighting: Sighting, recent: Sighting, told: tuple[str, str] | None) -> Sighting:
    """Silence what a longer window shows when it adds nothing to the short one.

    A longer window is there for small, slow changes. It would report a large one a second time, and
    once more after it has passed.

    Parameters
    ----------
    recent
        What the short window shows of the same metric: when that is calm, the change has passed.
    told
        Level and status of the alert that stands for the short window, None when there is none.
    """
    passed = recent.value is not None and recent.value < CLEAR_BELOW * recent.threshold["warning"]
    if passed or (told is not None and _rank(*told) >= _rank(sighting.level, sighting.status)):
        return replace(sighting, level="ok", status="")
    return sighting


def _rank(level: str, status: str) -> tuple[int, bool]:
    return LEVELS.index(level), status == "confirmed"


def _levels(limits: Limits) -> dict[str, float]:
    return {level: limits.threshold(level) for level in LEVELS[1:]}


def _non_finite(window: Window, limits: Limits, name: str) -> Sighting:
    """A prediction that is not a number helps nobody: each counts as lost accuracy, with or without labels."""
    if window.n < limits.minimum_predictions:
        return Sighting("non_finite", name)
    share = window.non_finite / window.n
    level = limits.level(share)
    message = (
        f"{share:.1%} of {_period(window)} held NaN or infinite probabilities, which are left out of all other "
        f"figures; check the model and its input, and {WHAT_TO_DO.get(level, '')}."
    )
    return Sighting("non_finite", name, level, "confirmed" if level != "ok" else "", share, _levels(limits), message)


def _accuracy(window: Window, reference: Baseline | None, limits: Limits, name: str) -> Sighting:
    enough = min(window.n_labels, reference.size if reference else 0) >= limits.minimum_labels
    if reference is None or not enough or not reference.accuracy:
        return Sighting("accuracy", name)
    accuracy = window.right / window.n_labels
    drop = 1 - accuracy / reference.accuracy
    sure = statistics.drop_lower_bound(
        window.right, window.n_labels, reference_right(reference), reference.size, 1 - limits.alarm_alpha
    )
    level, status = limits.level(sure), "confirmed"
    if level == "ok":
        level, status = ("warning", "suspected") if sure > 0 and drop > limits.warning else ("ok", "")
    certainty = f"at least {sure:.1%} of it certain" if status == "confirmed" else "how much of it is not yet certain"
    message = (
        f"Accuracy fell from {reference.accuracy:.1%} to {accuracy:.1%} in {_period(window)}, "
        f"by the {window.n_labels:,} labels told so far: a drop of {drop:.1%}, {certainty}"
        f"{_worst_class(window, reference)}; {WHAT_TO_DO.get(level, '')}."
    )
    return Sighting("accuracy", name, level, status, drop, _levels(limits), message)


def _drift(
    result: DriftResult, inputs: Sequence[DriftResult], window: Window, reference: Baseline | None, limits: Limits
) -> Sighting:
    """Without labels nobody knows the harm, so this is never more than a warning."""
    if result.effect is None or result.p_value is None:
        return Sighting(result.metric, result.window)
    level, status = ("warning", "estimate") if result.drifted else ("ok", "")
    what = result.metric.replace("_", " ").capitalize()
    changed = ", ".join(f"{entry.metric} ({entry.detail})" for entry in inputs)
    pictures = f"; the pictures changed too: {changed}" if changed else ""
    needed = statistics.labels_needed(reference.accuracy if reference else 0.0)
    message = (
        f"{what} changed in {_period(window)}: {result.detail} (effect {result.effect:.3f}, "
        f"{result.minimum_effect:g} would matter, p {p_text(result.p_value)}){pictures}; whether that does harm "
        f"cannot be told without labels: label about {needed:,} of these predictions to find out."
    )
    # "no_drift" at 5 % even without correction: at the edge of noise D hovers around the minimum effect
    like_before = result.p_value > limits.alpha
    return Sighting(
        result.metric, result.window, level, status, result.effect, {"warning": result.minimum_effect}, message,
        like_before,
    )  # fmt: skip


def _period(window: Window) -> str:
    since = datetime.fromtimestamp(float(window.time.min()), UTC)
    return f"the last {window.n:,} predictions (since {since:%Y-%m-%d %H:%M} UTC)"


def _worst_class(window: Window, reference: Baseline) -> str:
    """The class whose recall fell most, as a clause; nothing when none fell, as far as labels tell."""
    k = len(window.classes)
    told = window.labelled
    cases = np.bincount(window.labels[told], minlength=k)
    hits = np.bincount(window.labels[told & np.equal(window.predicted, window.labels)], minlength=k)
    usual_cases = np.bincount(reference.labels, minlength=k)
    usual_hits = np.bincount(reference.labels[reference.predicted == reference.labels], minlength=k)
    if not (enough := (cases >= FEWEST_OF_A_CLASS) & (usual_cases >= FEWEST_OF_A_CLASS)).any():
        return ""
    now, before = hits / np.maximum(cases, 1), usual_hits / np.maximum(usual_cases, 1)
    worst = int(np.where(enough, before - now, -np.inf).argmax())
    if now[worst] >= before[worst]:
        return ""
    return f"; worst is {window.classes[worst]!r}, found {now[worst]:.0%} of the time instead of {before[worst]:.0%}"

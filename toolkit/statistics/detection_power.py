"""Drops of accuracy that the monitor can detect with a baseline of n held-out images, and after how many labels.

The accuracy detector (``toolkit.monitoring.stats.e_detectors``) bets on relative drops of accuracy and discounts
each bet, since the reference accuracy is known from n images only. A drop that wins less than the discount is
never detected.
"""

import math

DROPS = (0.05, 0.1, 0.2, 0.3)  # relative drops of accuracy that the detector bets on: the three levels, and beyond
RUN_LENGTH = 6e6  # labels to a false alarm: accuracy has a sixth of a budget of one in a million
MAX_LABELS = 10_000  # beyond which a drop counts as not detected
REPORTED_DROPS = (0.05, 0.1, 0.2)  # of the three levels of alerts


def labels_to_detect(accuracy: float, n: int, drop: float, run_length: float = RUN_LENGTH) -> float:
    """Expected number of labels between a relative drop of accuracy and the alarm; infinite if there is none.

    ``accuracy`` is that of ``n`` held-out images, ``run_length`` the average number of labels to a false alarm.

    Examples
    --------
    >>> [round(labels_to_detect(0.84, 10_000, drop)) for drop in (0.05, 0.1, 0.2)]
    [2238, 543, 157]
    >>> labels_to_detect(0.84, 100, 0.1)
    inf

    References
    ----------
    Pollak, M. (1987). Average run lengths of an optimal method of detecting a change in distribution.
    Annals of Statistics 15, 749-779.
    """
    error_rate = (n * (1 - accuracy) + 1) / (n + 1)
    odds, wrong = (1 - error_rate) / error_rate, 1 - accuracy * (1 - drop)
    wins = max(wrong * math.log(1 + bet * odds) + (1 - wrong) * math.log(1 - bet) for bet in DROPS)
    rate = wins - math.log(run_length) / n
    return max(math.log(run_length * rate), 1.0) / rate if rate > 0 else math.inf


def describe_detectable_drops(accuracy: float, n: int) -> str:
    """The drops of accuracy that the alarm detects by labels with ``n`` held-out images, as a sentence.

    Examples
    --------
    >>> print(describe_detectable_drops(0.9, 10_000))
    by 10,000 held-out images the alarm finds a drop of accuracy of 5 % after about 1,300, 10 % after about 350, \
20 % after about 110 labels
    >>> print(describe_detectable_drops(0.9, 50))
    with 50 held-out images the alarm cannot notice a drop of accuracy of 20 % or less: hold out more images
    """
    if not n:
        return "there are no held-out images, so the alarm finds nothing: hold some out"
    labels = {drop: labels_to_detect(accuracy, n, drop) for drop in REPORTED_DROPS}
    found = {drop: count for drop, count in labels.items() if count <= MAX_LABELS}
    if not found:
        few = f"with {n:,} held-out images the alarm cannot notice a drop of accuracy of 20 % or less"
        return f"{few}: hold out more images"
    parts = [f"{drop:.0%} after about {float(f'{count:.2g}'):,.0f}".replace("%", " %") for drop, count in found.items()]
    missing = "; smaller ones need more held-out images" if len(found) < len(labels) else ""
    return f"by {n:,} held-out images the alarm finds a drop of accuracy of {', '.join(parts)} labels{missing}"

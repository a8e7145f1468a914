"""Whether a version may replace the one in Production.

Both are compared on the same images. The newcomer is refused when it is significantly worse: over
all images, or in one class, where Holm's correction keeps many classes from refusing by chance;
when it does not know a class that is being served; and when there is no image to compare them
on. What else is worth knowing before a promotion is said, and refuses nothing.

A version that is as good as the present one is refused by chance at most once in twenty times. One
that is worse may pass when the images are few: how much could have gone unnoticed is said.

References
----------
S. Holm: A simple sequentially rejective multiple test procedure. Scandinavian Journal of
Statistics 6, 1979.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from toolkit.errors import suggest
from toolkit.registry.comparison import Candidate
from toolkit.registry.mcnemar import PairedComparison, PairedCounts, pair_by_hash
from toolkit.registry.metrics import Score, share_score
from toolkit.statistics.intervals import holm

ALPHA = 0.05  # two-sided, so that half of it is the chance to refuse what is as good, in all and in classes each
MIN_LOST = 6  # images, all of the disagreements: fewer are never significant (2 * 0.5**5 > ALPHA)
UNNOTICED = 0.05  # share of the images from which it is worth saying that as many mistakes more cannot be told
LESS_CALIBRATED = 0.02  # more calibration error than this is worth saying
SLOWER, SLOWER_MS = 1.25, 1.0  # times and milliseconds, from which together it is worth saying
MOST_CLASSES = 5  # named in a message


@dataclass(frozen=True)
class GateResult:
    """What the gate found.

    Parameters
    ----------
    version, against
        The version that wants to be in Production, and the one that is.
    paired
        Both on the same images.
    calibration
        Calibration error of the present and of the new version, on the same images.
    latency_ms
        Milliseconds for one image of the present and of the new version, where it was measured.
    objections
        Why it is refused; empty when it passes.
    remarks
        What else is worth knowing.
    """

    version: int
    against: int
    paired: PairedComparison
    calibration: tuple[float, float]
    latency_ms: tuple[float | None, float | None]
    objections: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether there is no objection."""
        return not self.objections

    @property
    def figures(self) -> str:
        """The comparison in half a line."""
        whole = self.paired.whole
        if not whole.images:
            return f"not compared with v{self.against}"
        before, after = (
            _interval(share_score(whole.both + alone, whole.images)) for alone in (whole.lost, whole.gained)
        )
        return (
            f"accuracy {after} against {before} of v{self.against} on the same {whole.images} images,"
            f" {whole.gained} gained and {whole.lost} lost, p {whole.p_value:.2g}"
        )

    def __str__(self) -> str:
        return "; ".join([self.figures, *self.objections, *self.remarks])

    def to_dict(self) -> dict[str, Any]:
        """The verdict as what JSON can hold."""
        whole = self.paired.whole
        return {
            "version": self.version,
            "against": self.against,
            "passed": self.passed,
            "objections": list(self.objections),
            "remarks": list(self.remarks),
            "images": whole.images,
            "accuracies": list(whole.accuracies) if whole.images else None,
            "difference": list(whole.difference) if whole.images else None,
            "lost": whole.lost,
            "gained": whole.gained,
            "p_value": whole.p_value if whole.images else None,
            "calibration_errors": [error if math.isfinite(error) else None for error in self.calibration],
            "latency_ms": list(self.latency_ms),
        }


def check_promotion(newcomer: Candidate, present: Candidate) -> GateResult:
    """Compare a version with the one in Production.

    Parameters
    ----------
    newcomer, present
        With the baselines to compare them by: what each did on the images that both held out, or on
        other images that both were run on.
    """
    paired = pair_by_hash(present.baseline, newcomer.baseline)
    return GateResult(
        version=newcomer.version.version,
        against=present.version.version,
        paired=paired,
        calibration=(present.baseline.calibration_error, newcomer.baseline.calibration_error),
        latency_ms=(present.latency_ms, newcomer.latency_ms),
        objections=tuple(_objections(newcomer, present, paired)),
        remarks=tuple(_remarks(newcomer, present, paired.whole)),
    )


def worse_classes(paired: PairedComparison) -> list[str]:
    """The classes in which the second version is significantly worse, by Holm's procedure.

    >>> worse_classes(Paired({"cat": Tally(lost=9, gained=0), "dog": Tally(lost=1, gained=4)}))
    ['cat']
    """
    ordered = sorted(paired.by_class.items(), key=lambda item: item[1].p_value)
    corrected = holm([tally.p_value for _, tally in ordered])
    return [
        name for (name, tally), p in zip(ordered, corrected, strict=True) if p < ALPHA and tally.lost > tally.gained
    ]


def _objections(newcomer: Candidate, present: Candidate, paired: PairedComparison) -> Iterator[str]:
    if gone := [name for name in present.card.classes if name not in newcomer.card.classes]:
        yield f"it does not know {_classes(gone)}, which v{present.version.version} tells"
    if not (whole := paired.whole).images:
        yield (
            f"it shares no held-out image with v{present.version.version}, so nothing tells which is better; name a"
            " folder of labelled images to run both on"
        )
    elif whole.lost > whole.gained and whole.p_value < ALPHA:
        yield "it is significantly worse"
    elif worse := worse_classes(paired):
        losses = [_losses(name, paired.by_class[name]) for name in worse[:MOST_CLASSES]]
        yield f"it is significantly worse in {_classes(worse)}: {'; '.join(losses)}"


def _remarks(newcomer: Candidate, present: Candidate, whole: PairedCounts) -> Iterator[str]:
    if whole.images and MIN_LOST / whole.images > UNNOTICED:
        more, share = MIN_LOST - 1, (MIN_LOST - 1) / whole.images
        yield (f"{whole.images} images are few: {more} mistakes more, {share:.0%}, could not be told from chance")
    if new := [name for name in newcomer.card.classes if name not in present.card.classes]:
        yield f"new: {_classes(new)}"
    before, after = present.baseline.calibration_error, newcomer.baseline.calibration_error
    if after > before + LESS_CALIBRATED:
        yield f"less well calibrated: error {after:.2g} against {before:.2g}"
    old, now = present.latency_ms, newcomer.latency_ms
    if old and now and now > max(SLOWER * old, old + SLOWER_MS):
        yield f"slower: {now:.3g} ms an image against {old:.3g}"
    if newcomer.card.decoder != present.card.decoder:
        yield f"measured with decoder {newcomer.card.decoder}, v{present.version.version} with {present.card.decoder}"


def _losses(name: str, tally: PairedCounts) -> str:
    return f"of {tally.images} images of {name!r} {tally.lost} lost and {tally.gained} gained"


def _interval(score: Score) -> str:
    return f"{score.value:.4g} [{score.low:.3g}, {score.high:.3g}]"


def _classes(names: list[str]) -> str:
    plural = "class" if len(names) == 1 else "classes"
    return f"{plural} {suggest(repr(name) for name in names)}"

"""The gate that decides whether a challenger may replace the champion, the version in Production.

Both are compared on the same images. The challenger is refused when it is significantly worse, over all
images or in one class, where Holm's correction limits refusals by chance over many classes; when it does
not know a class that is being served; and when there are no images to compare them on. Remarks mention
other differences, and refuse nothing.

A challenger as good as the champion is refused by chance at most once in twenty times. A worse one may
pass when the images are few; a remark then gives the difference that could have gone unnoticed.

References
----------
S. Holm: A simple sequentially rejective multiple test procedure. Scandinavian Journal of
Statistics 6, 1979.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from toolkit.errors import suggest
from toolkit.registry.comparison import Candidate
from toolkit.registry.mcnemar import PairedComparison, PairedCounts, pair_by_hash
from toolkit.registry.metrics import Score, share_score
from toolkit.statistics.intervals import holm

ALPHA = 0.05  # two-sided: half of it is the chance to refuse an equal version, over all images and over classes each
MIN_LOST = 6  # images, all disagreements: fewer are never significant (2 * 0.5**5 > ALPHA)
UNNOTICED = 0.05  # share of the images from which undetectable mistakes are worth a remark
LESS_CALIBRATED = 0.02  # increase of the calibration error that is worth a remark
SLOWER, SLOWER_MS = 1.25, 1.0  # times and milliseconds that together are worth a remark
MAX_CLASSES = 5  # named in a message


@dataclass(frozen=True)
class GateResult:
    """The result of the gate."""

    version: int  # of the challenger
    against: int  # the version of the champion
    paired: PairedComparison  # champion and challenger on the same images
    latency_ms: tuple[float | None, float | None]  # of champion and challenger for one image; None: not measured
    objections: tuple[str, ...] = ()  # reasons to refuse the challenger; empty when it passes
    remarks: tuple[str, ...] = ()  # other differences

    @property
    def passed(self) -> bool:
        """Whether there is no objection."""
        return not self.objections

    @property
    def summary(self) -> str:
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
        return "; ".join([self.summary, *self.objections, *self.remarks])


def check_promotion(challenger: Candidate, champion: Candidate) -> GateResult:
    """Compare a version with the one in Production, both measured on the same images."""
    paired = pair_by_hash(champion.baseline, challenger.baseline)
    return GateResult(
        version=challenger.version.version,
        against=champion.version.version,
        paired=paired,
        latency_ms=(champion.latency_ms, challenger.latency_ms),
        objections=tuple(_objections(challenger, champion, paired)),
        remarks=tuple(_remarks(challenger, champion, paired.whole)),
    )


def worse_classes(paired: PairedComparison) -> list[str]:
    """The classes in which the second version is significantly worse, by Holm's procedure.

    >>> worse_classes(PairedComparison({"cat": PairedCounts(lost=9), "dog": PairedCounts(lost=1, gained=4)}))
    ['cat']
    """
    ordered = sorted(paired.by_class.items(), key=lambda item: item[1].p_value)
    corrected = holm([counts.p_value for _, counts in ordered])
    return [
        name for (name, counts), p in zip(ordered, corrected, strict=True) if p < ALPHA and counts.lost > counts.gained
    ]


def _objections(challenger: Candidate, champion: Candidate, paired: PairedComparison) -> Iterator[str]:
    if missing := [name for name in champion.card.classes if name not in challenger.card.classes]:
        yield f"it does not know {_classes(missing)}, which v{champion.version.version} knows"
    if not (whole := paired.whole).images:
        yield (
            f"it shares no held-out image with v{champion.version.version}, so they cannot be compared; name a"
            " folder of labelled images to run both on"
        )
    elif whole.lost > whole.gained and whole.p_value < ALPHA:
        yield "it is significantly worse"
    elif worse := worse_classes(paired):
        losses = "; ".join(_losses(name, paired.by_class[name]) for name in worse[:MAX_CLASSES])
        yield f"it is significantly worse in {_classes(worse)}: {losses}"


def _remarks(challenger: Candidate, champion: Candidate, whole: PairedCounts) -> Iterator[str]:
    if whole.images and MIN_LOST / whole.images > UNNOTICED:
        more, share = MIN_LOST - 1, (MIN_LOST - 1) / whole.images
        yield f"{whole.images} images are few: {more} mistakes more, {share:.0%}, would not be significant"
    if new := [name for name in challenger.card.classes if name not in champion.card.classes]:
        yield f"new: {_classes(new)}"
    before, after = champion.baseline.calibration_error, challenger.baseline.calibration_error
    if after > before + LESS_CALIBRATED:
        yield f"less well calibrated: error {after:.2g} against {before:.2g}"
    old, now = champion.latency_ms, challenger.latency_ms
    if old and now and now > max(SLOWER * old, old + SLOWER_MS):
        yield f"slower: {now:.3g} ms an image against {old:.3g}"
    if challenger.card.decoder != champion.card.decoder:
        other = f"v{champion.version.version} with {champion.card.decoder}"
        yield f"measured with decoder {challenger.card.decoder}, {other}"


def _losses(name: str, counts: PairedCounts) -> str:
    return f"of {counts.images} images of {name!r} {counts.lost} lost and {counts.gained} gained"


def _interval(score: Score) -> str:
    return f"{score.value:.4g} [{score.low:.3g}, {score.high:.3g}]"


def _classes(names: list[str]) -> str:
    plural = "class" if len(names) == 1 else "classes"
    return f"{plural} {suggest(repr(name) for name in names)}"

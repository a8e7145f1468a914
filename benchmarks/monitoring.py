"""The monitor and Evidently, NannyML, river, BBSDs and plain tests, on the same answers.

    pip install -r requirements-bench.txt           # once, in an environment of its own
    python benchmarks/monitoring.py                 # about 20 minutes
    python benchmarks/monitoring.py --quick         # the same with fewer repeats, in under five
    python benchmarks/monitoring.py --part power    # or false-alarms, delay, harm, cost
    python benchmarks/monitoring.py --json          # ends with one JSON object of claims

train_cnn.py trains a network on Fashion-MNIST from Debian's package dataset-fashion-mnist, on
scikit-learn's digits where that is not installed, or on IDX files in --data. Its bundle answers to
images that it has never seen, as they are and shifted (see benchmarks/shifts.py). Each repeat
takes other images for the reference: at most 10,000, or half of those there are.

    false-alarms  the monitor's three alarms together, after each prediction, on answers drawn from the
                  images that are not in the reference, 3 of 10 labelled; a new reference every 50,000
    power         the share of 27 shifts that is found in n images, and of unshifted windows that is
                  taken for one; each test promises 0.05. Ours needs 100 predictions and a minimum effect;
                  a second row has it without that. Evidently's results are those of the first few repeats
    delay         from labels, of a model that was right in 9,000 of 10,000 images; and from answers,
                  when from some point on half or all images are rotated by up to 40 degrees. Medians
                  over streams, from the change to the first alarm after it; false alarms are counted on
                  streams of their own
    harm          whether an estimate of accuracy without labels ranks windows of 1,000 that have lost
                  more than 5 % of accuracy above those that have not: the area under the ROC curve,
                  where a ranking by chance, or one that always or never warns, has 0.5
    cost          time and memory; timed parts run in turns, and values are medians. A report of ten
                  million predictions is that of counts added up, without a store

What never alarms and what always does stand in every table of alarms.
"""

import math
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import roc_auc_score

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import costs, drift_detectors  # noqa: E402
from benchmarks.claims import Claim, Claims, argument_parser, conclude, machine  # noqa: E402
from benchmarks.drift_detectors import ALWAYS, BBSDS, NEVER, OURS, OURS_ANY_EFFECT, DriftTests  # noqa: E402
from benchmarks.shifts import FAILING_LOUDLY, SOFTER, Shift, UnseenImages, as_window, train_and_answer  # noqa: E402
from toolkit.bundle.baseline import Baseline  # noqa: E402
from toolkit.cli.settings import run_script  # noqa: E402
from toolkit.cli.terminal import echo, table  # noqa: E402
from toolkit.monitoring.alerting.findings import evaluate_window  # noqa: E402
from toolkit.monitoring.base.predictions import Predictions  # noqa: E402
from toolkit.monitoring.base.thresholds import Thresholds  # noqa: E402
from toolkit.monitoring.stats.detector_set import DetectorSet  # noqa: E402
from toolkit.monitoring.windows.metrics import estimated_accuracy  # noqa: E402
from toolkit.monitoring.windows.reference import ReferenceBins  # noqa: E402

PEERS = ("numpy", "scipy", "pandas", "evidently", "nannyml", "river")
MILLION = 1_000_000

# False alarms.
BUDGET, LABELLED = 1.0, 0.3  # a million predictions; share of them
STREAM = 50_000  # predictions with one reference

# Power.
SIZES = (10, 20, 50, 100, 200, 500, 1_000, 10_000)
CLEAN = 8  # windows a repeat and size, as far as the images suffice
ERRORS = 0.05
ENOUGH = 0.85  # of the images, when those of a class are taken away
AIM, AIMED = 0.03, 1_000  # share of shifts to be found beyond BBSDs', in windows up to this size
SLOW = 2  # repeats that Evidently takes part in

# Delay.
RIGHT, IMAGES = 9_000, 10_000
DROPS = {0.05: None, 0.10: 330.0, 0.20: 90.0}  # relative drop of accuracy -> goal, in labels
BEFORE, AFTER = 2_000, 10_000  # labels before the change, and at most after it
LOOSER = 10.0  # false alarms per million predictions
ROTATED = {0.5: 120.0, 1.0: None}  # share of the images -> goal, in predictions
MAX_UNCHANGED = {"KSWIN": 20_000}  # it takes 0.2 ms a prediction

# Harm.
HARMFUL = 0.05  # relative drop of accuracy
WINDOW = 1_000


class Scale(NamedTuple):
    """Amount of work to measure."""

    images: int  # unseen ones, at most
    predictions: int  # for false alarms
    repeated: int  # and for repeated tests
    clean: int  # repeats for unshifted windows
    shifted: int  # and for shifted ones
    streams: int  # for each delay
    unchanged: int  # labels or predictions without a change
    windows: int  # of each shift, for its harm
    timings: int


FULL = Scale(54_000, 5 * MILLION, 500_000, 100, 20, 200, MILLION, 20, 15)
QUICK = Scale(22_000, 2 * MILLION, 50_000, 25, 2, 25, 200_000, 4, 5)


Results = Mapping[tuple[str, int], list[bool]]  # by test, and the size of the windows


def main() -> None:
    """Measure and print."""
    parser = argument_parser(__doc__, quick="fewer repeats")
    parser.add_argument("--part", choices=PARTS, help="what is measured, instead of everything")
    parser.add_argument("--data", type=Path, help="folder of IDX files, instead of Fashion-MNIST or digits")
    options = parser.parse_args()
    scale = QUICK if options.quick else FULL
    echo(machine(*PEERS))
    claims: Claims = {}
    with tempfile.TemporaryDirectory(prefix="monitoring-") as folder:
        images = train_and_answer(Path(folder), scale.images, options.data)
        echo(f"{images.name}, references of {images.reference_size:,}")
        for part in [options.part] if options.part else PARTS:
            claims |= PARTS[part](images, scale)
    conclude(claims, options.json)


# False alarms


def false_alarms(images: UnseenImages, scale: Scale) -> Claims:
    """Alarms without a change, after each prediction."""
    ours = sum(_alarms(images, seed) for seed in range(scale.predictions // STREAM))
    generator = np.random.default_rng(0)
    baseline, others = images.split(generator)
    plain = len(list(drift_detectors.repeated_tests(baseline, drawn(images, others, scale.repeated, generator))))
    most = int(stats.poisson.ppf(0.975, BUDGET * scale.predictions / MILLION))
    rows = {
        f"{OURS}, after each": (ours, scale.predictions),
        "KS, chi-square and z at 0.05, after each 100": (plain, scale.repeated),
        NEVER: (0, scale.predictions),
        f"{ALWAYS}, after each": (scale.predictions, scale.predictions),
    }
    cells = [[name, f"{n:,}", f"{count:,}", f"{count / n * MILLION:,.3g}"] for name, (count, n) in rows.items()]
    echo(f"\n{table(['false alarms', 'predictions', 'alarms', 'per million'], cells)}")
    about = f"{scale.predictions:,} predictions at {BUDGET:g} per million, {LABELLED:.0%} labelled; the goal is the end"
    return {"false alarms": Claim(ours, most, "lower", f"{about} of the budget's 95 % band")}


def _alarms(images: UnseenImages, seed: int) -> int:
    generator = np.random.default_rng([1, seed])
    baseline, others = images.split(generator)
    window, detectors = drawn(images, others, STREAM, generator), DetectorSet(baseline, BUDGET)
    labelled = generator.random(STREAM) < LABELLED
    alarms = detectors.update_labels(window.predicted[labelled], window.labels[labelled])
    return len(detectors.update(window)) + len(alarms)


def drawn(images: UnseenImages, places: NDArray[np.int64], n: int, generator: np.random.Generator) -> Predictions:
    """A stream of answers without a change."""
    chosen = generator.choice(places, n)
    return as_window(images.classes, images.answers["clean"][chosen], images.labels[chosen])


# Power


def power(images: UnseenImages, scale: Scale) -> Claims:
    """The share of shifts that is found, and of windows without one that is taken for one."""
    found: dict[tuple[str, int], list[bool]] = defaultdict(list)
    clean: dict[tuple[str, int], list[bool]] = defaultdict(list)
    for repeat in range(scale.clean):
        generator = np.random.default_rng([2, repeat])
        baseline, others = images.split(generator)
        tests = DriftTests(baseline)
        for n in (n for n in SIZES if n < ENOUGH * len(others)):
            windows = list(islice(_apart(images, others, n, generator), CLEAN))
            shifts = FAILING_LOUDLY if repeat < scale.shifted else ()
            shifted = [images.window(others, n, generator, shift) for shift in shifts]
            for results, judged in ((clean, windows), (found, shifted)):
                for window in judged:
                    for name, drifted in tests.results(window, evidently=repeat < SLOW).items():
                        results[name, n].append(drifted)
    _show_power(found, clean)
    return _power_claims(found, clean)


def _apart(
    images: UnseenImages, places: NDArray[np.int64], n: int, generator: np.random.Generator
) -> Iterator[Predictions]:
    """Windows that share no image."""
    order = generator.permutation(places)
    for start in range(0, len(order) - n + 1, n):
        yield images.window(order[start : start + n], n, generator)


def _show_power(found: Results, clean: Results) -> None:
    sizes = [n for n in SIZES if (OURS, n) in clean]
    headings = ["shifts found (false alarms)", *(f"n = {n:,}" for n in sizes)]
    names = dict.fromkeys(name for name, _ in found)
    rows = [
        [name, *(f"{np.mean(found[name, n]):.3f} ({np.mean(clean[name, n]):.3f})" for n in sizes)] for name in names
    ]
    echo(f"\n{table(headings, rows)}")
    counts = ", ".join(f"{len(clean[OURS, n])} at {n:,}" for n in sizes)
    echo(f"{len(found[OURS, sizes[0]])} shifted windows of each size; unshifted ones: {counts}")


def _power_claims(found: Results, clean: Results) -> Claims:
    sizes = [n for n in SIZES if (OURS, n) in clean]
    claims = {}
    for name in (OURS, OURS_ANY_EFFECT):
        for n in sizes:
            if name == OURS and n < Thresholds().minimum_predictions:
                continue
            more = float(np.mean(found[name, n]) - np.mean(found[BBSDS, n]))
            about = (
                f"27 shifts, {len(found[name, n])} windows of {n:,} images, share of shifts found less that of BBSDs"
            )
            claims[f"{name}: more found at {n:,}"] = Claim(more, AIM if n <= AIMED else 0.0, "higher", about)
        over = [float(np.mean(clean[name, n])) - _most_errors(len(clean[name, n])) for n in sizes]
        about = "share of unshifted windows taken for shifted, less 0.05 and two standard errors, at the worst size"
        claims[f"{name}: errors beyond chance"] = Claim(max(over), 0.0, "lower", about)
    return claims


def _most_errors(windows: int) -> float:
    """Largest number of errors of a test at 0.05 that chance explains."""
    return ERRORS + 2 * math.sqrt(ERRORS * (1 - ERRORS) / windows)


# Delay


def delay(images: UnseenImages, scale: Scale) -> Claims:
    """Delay from a change to the alarm, with labels and without."""
    return _delay_of_labels(scale) | _delay_of_answers(images, scale)


def _delay_of_labels(scale: Scale) -> Claims:
    delays: dict[str, dict[float, float]] = {}
    unchanged: dict[str, tuple[int, int]] = {}
    for name, detect in drift_detectors.by_labels(RIGHT, IMAGES).items():
        delays[name] = {drop: _median(_delay(detect, _labels(drop, seed), BEFORE) for seed in range(scale.streams))
                        for drop in DROPS}  # fmt: skip
        unchanged[name] = (
            len(list(detect(np.random.default_rng(4).random(scale.unchanged) < RIGHT / IMAGES))),
            scale.unchanged,
        )
    headings = ["labels to an alarm", *(f"accuracy {drop:.0%} lower" for drop in DROPS), "false alarms per million"]
    _show_delays(headings, delays, unchanged)
    about = f"accuracy 0.9 measured on {IMAGES:,} images, run length {MILLION:,}, {scale.streams} streams"
    return {
        f"labels to an alarm, accuracy {drop:.0%} lower": Claim(delays[OURS][drop], goal, "lower", about)
        for drop, goal in DROPS.items()
        if goal is not None
    }


def _labels(drop: float, seed: int) -> NDArray[np.bool_]:
    accuracy = np.repeat([RIGHT / IMAGES, RIGHT / IMAGES * (1 - drop)], [BEFORE, AFTER])
    return np.asarray(np.random.default_rng([3, seed]).random(len(accuracy)) < accuracy)


def _delay_of_answers(images: UnseenImages, scale: Scale) -> Claims:
    delays: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    unchanged: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for seed in range(scale.streams):
        generator = np.random.default_rng([5, seed])
        baseline, others = images.split(generator)
        calm = drawn(images, others, scale.unchanged // scale.streams, generator)
        for share in ROTATED:
            change = int(generator.integers(1_000, 2_000))  # anywhere in a block of tests of each thousand
            stream = _rotated(images, others, change, share, generator)
            for name, detect in drift_detectors.by_answers(baseline, LOOSER).items():
                delays[name][share].append(_delay(detect, stream, change))
        for name, detect in drift_detectors.by_answers(baseline, LOOSER).items():
            alarms, n_seen = unchanged[name]
            if n_seen < MAX_UNCHANGED.get(name, scale.unchanged):
                unchanged[name] = alarms + len(list(detect(calm))), n_seen + calm.n
    medians = {name: {share: _median(row[share]) for share in ROTATED} for name, row in delays.items()}
    headings = ["predictions to an alarm", *(f"{share:.0%} rotated" for share in ROTATED), "false alarms per million"]
    _show_delays(headings, medians, unchanged)
    about = f"no labels, {LOOSER:g} false alarms per million, {scale.streams} streams"
    return {
        f"predictions to an alarm, {share:.0%} rotated": Claim(medians[OURS][share], goal, "lower", about)
        for share, goal in ROTATED.items()
        if goal is not None
    }


def _rotated(
    images: UnseenImages, places: NDArray[np.int64], change: int, share: float, generator: np.random.Generator
) -> Predictions:
    """Answers of which the later ones are to images that are rotated, or to as many of them as ``share`` says."""
    chosen = generator.choice(places, change + 2_000)
    turned = (np.arange(len(chosen)) >= change) & (generator.random(len(chosen)) < share)
    answers = np.where(turned[:, None], images.answers["rotated"][chosen], images.answers["clean"][chosen])
    return as_window(images.classes, answers, images.labels[chosen])


def _delay(detect: Callable[[Any], Iterator[int]], stream: Any, change: int) -> float:
    """Values from the change to the first alarm after it, infinite when there is none."""
    return next((place - change + 1.0 for place in detect(stream) if place >= change), np.inf)


def _median(values: Iterable[float]) -> float:
    return float(np.median(list(values)))


def _show_delays(
    headings: Sequence[str], delays: Mapping[str, Mapping[float, float]], unchanged: Mapping[str, tuple[int, int]]
) -> None:
    rows = []
    for name, row in delays.items():
        alarms, n = unchanged[name]
        cells = [f"{value:,.0f}" if np.isfinite(value) else "never" for value in row.values()]
        rows.append([name, *cells, f"{alarms / n * MILLION:,.3g} ({alarms:,} in {n:,})"])
    echo(f"\n{table(headings, rows)}")


# Harm


def harm(images: UnseenImages, scale: Scale) -> Claims:
    """Whether estimates without labels separate harmful shifts from harmless ones."""
    rows_of: dict[Shift | None, list[dict[str, float]]] = defaultdict(list)
    size = min(WINDOW, (len(images) - images.reference_size) // 2)
    for repeat in range(scale.windows):
        generator = np.random.default_rng([6, repeat])
        baseline, others = images.split(generator)
        bins, peer = ReferenceBins(baseline.classes, baseline), drift_detectors.cbpe(baseline)
        for shift in (None, *FAILING_LOUDLY, *SOFTER):
            window = images.window(others, size, generator, shift)
            rows_of[shift].append(_estimates_of(window, baseline, bins) | {"CBPE of NannyML": peer(window)})
    groups = {"Failing Loudly": (None, *FAILING_LOUDLY), "with contrast, blur": tuple(rows_of)}
    kinds = dict.fromkeys(shift.kind for shift in rows_of if shift)
    groups |= {kind: tuple(shift for shift in rows_of if shift and shift.kind == kind) for kind in kinds}
    tables = {name: _ranked([row for shift in group for row in rows_of[shift]]) for name, group in groups.items()}
    cells = [[name, *(_area(column[name]) for column in tables.values())] for name in ESTIMATES]
    many = [_harmful(row for shift in group for row in rows_of[shift]) for group in groups.values()]
    cells.append(["harmful windows", *(f"{sum(harmful)} of {len(harmful)}" for harmful in many)])
    echo(f"\n{table(['AUROC', *tables], cells)}")
    return _harm_claims(rows_of, tables, f"{scale.windows} windows of {size:,} of each shift and of none")


def _estimates_of(window: Predictions, baseline: Baseline, bins: ReferenceBins) -> dict[str, float]:
    """The truth about a window, and what is said of it without labels."""
    unlabelled = as_window(window.classes, window.probabilities, np.full(window.n, -1))
    counts, thresholds = bins.count(unlabelled), Thresholds()
    estimated = estimated_accuracy(counts, bins, thresholds)
    worst = max(Thresholds.severity(finding.level) for finding in evaluate_window(counts, bins, thresholds, "short"))
    return {
        "truth": float((window.predicted == window.labels).mean()),
        "reference": baseline.accuracy,
        OURS: np.nan if estimated is None or estimated.accuracy is None else estimated.accuracy,
        "mean confidence": counts.mean_confidence,
        NEVER: baseline.accuracy,
        ALWAYS: 0.0,
        "warned": float(estimated is not None and estimated.level == "warning"),
        "severity": float(worst),
    }


def _ranked(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The area under the ROC curve of each estimate, lower accuracies first; NaN without both kinds."""
    harmful = _harmful(rows)
    return {
        name: roc_auc_score(harmful, [-row[name] / row["reference"] for row in rows]) if len({*harmful}) > 1 else np.nan
        for name in ESTIMATES
    }


def _area(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


ESTIMATES = (OURS, "CBPE of NannyML", "mean confidence", NEVER, ALWAYS)


def _harmful(rows: Iterable[Mapping[str, float]]) -> list[bool]:
    return [1 - row["truth"] / row["reference"] > HARMFUL for row in rows]


def _harm_claims(
    rows_of: Mapping[Shift | None, list[dict[str, float]]], tables: Mapping[str, Mapping[str, float]], about: str
) -> Claims:
    rows = [row for group in rows_of.values() for row in group]
    harmful = np.array(_harmful(rows))
    warned = np.array([row["warned"] for row in rows])
    errors = {name: np.mean([abs(row[name] - row["truth"]) for row in rows]) for name in ESTIMATES[:3]}
    echo(f"mean error in points: {', '.join(f'{name} {100 * error:.1f}' for name, error in errors.items())}")
    echo(f"ours warned of {warned[harmful].mean():.0%} of the harmful and {warned[~harmful].mean():.0%} of the others")
    missing = [
        row["severity"] for shift, group in rows_of.items() if shift and shift.kind == "class missing" for row in group
    ]
    about += f"; harmful: accuracy more than {HARMFUL:.0%} lower"
    return {
        "AUROC, shifts of Failing Loudly": Claim(tables["Failing Loudly"][OURS], 0.98, "higher", about),
        "AUROC, with contrast and blur": Claim(tables["with contrast, blur"][OURS], 0.98, "higher", about),
        "level of a class that is missing": Claim(max(missing), 1, "lower", f"{len(missing)} windows; 1 is a warning"),
    }


# Cost


def cost(images: UnseenImages, scale: Scale) -> Claims:
    """Time and memory."""
    generator = np.random.default_rng(7)
    baseline, others = images.split(generator)
    stream = drawn(images, others, 100_000, generator)
    about = f"10 classes, reference of {baseline.size:,}, medians of {scale.timings}"
    claims: Claims = {}
    for part in (costs.logging, costs.reports, costs.memory, costs.imports):
        headings, rows, values = part(baseline, stream, scale.timings)
        echo(f"\n{table(headings, rows)}")
        claims |= {name: Claim(value, goal, better, about) for name, (value, goal, better) in values.items()}
    return claims


PARTS: dict[str, Callable[[UnseenImages, Scale], Claims]] = {
    "false-alarms": false_alarms,
    "power": power,
    "delay": delay,
    "harm": harm,
    "cost": cost,
}

if __name__ == "__main__":
    run_script(main)

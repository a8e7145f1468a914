"""The search for hyperparameters beside plain Hyperopt and Optuna, at equal folds and seeds.

    pip install -r requirements-bench.txt         # once, in an environment of its own
    python benchmarks/tuning.py                   # about 45 minutes, on digits and on flowers that it draws
    python benchmarks/tuning.py --quick           # the same with fewer seeds, trials and images
    python benchmarks/tuning.py --data photos/    # your own photographs instead of flowers, one sub-folder a class
    python benchmarks/tuning.py --part counted    # leaves out what is measured in seconds, for a busy machine
    python benchmarks/tuning.py --plots docs/     # also draws the best accuracy against what it cost
    python benchmarks/tuning.py --json            # ends with one JSON object of claims

All search the space of hyperopt_tuning.py with all three networks, on small images and with fewer
epochs, and judge each trial by the same five stratified folds:

    plain               hyperopt.fmin with tpe.suggest as it comes, all folds of each trial
    Optuna, Wilcoxon    its TPESampler, and its WilcoxonPruner between folds, used as its manual shows
    Optuna, Hyperband   its TPESampler, and its HyperbandPruner with folds as the resource
    ours                the project's study

Cost is counted in multiply-adds of training and validation, repetitions included, which is exact and
the same on any machine. A search is there with its first trial that has all its folds and a mean
accuracy of plain's best less one standard error (the standard deviation over plain's folds by the
root of five). Where a rival never gets there, ours is compared with all that it spent; were it ours,
it would count as never. A seed decides folds, networks and
proposals; ratios are made for each seed, and their median is the claim. A training that two rivals
ask for is run once and costs both.

The mean of the best of thirty is a lucky one, more so the more means a search has to choose from. So each search's best
settings are cross-validated once more, with other folds and other initial weights: that accuracy is the final one.

The seconds at the end are of searches by themselves, one after another: all that happens from
the first proposal to the study's last image in MLflow, without the start of Python and the database.
"""

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import chdir
from dataclasses import replace
from itertools import accumulate, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray
from pydantic import TypeAdapter

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import hyperopt_tuning as tuning  # noqa: E402
from benchmarks.claims import Claim, Claims, argument_parser, conclude, machine  # noqa: E402
from benchmarks.images import draw, link, listed, write_digits  # noqa: E402
from benchmarks.searches import CONTESTANTS, FOLDS, HYPERBAND, OURS, PLAIN, WILCOXON, Arena, SearchResult  # noqa: E402
from toolkit.cli.settings import run_script  # noqa: E402
from toolkit.cli.terminal import echo, mute, table  # noqa: E402
from toolkit.errors import SettingsError, TrainingError  # noqa: E402
from toolkit.system.metrics import usable_cores  # noqa: E402
from toolkit.tracking.connection import connect  # noqa: E402
from toolkit.tuning.mlflow_logger import log_study  # noqa: E402
from toolkit.tuning.study import Study, StudyConfig  # noqa: E402
from toolkit.tuning.study_storage import FINISHED  # noqa: E402
from toolkit.tuning.trial import Trial  # noqa: E402
from toolkit.tuning.worker_pool import WorkerPool  # noqa: E402
from train_cnn import DataSettings  # noqa: E402

FEWEST = 120  # photographs
OTHER_SEED = 1_000  # added to a job's seed for the final accuracy
PROCESSES = 2  # at a time, each with one thread
MIN_ERROR = 1e-3  # of a mean accuracy; folds may happen to be all alike
NEVER = 1e24  # multiply-adds to an accuracy that was not reached

LINE_STYLES: Mapping[str, Mapping[str, Any]] = {  # of lines
    PLAIN: {"color": "#111827"}, WILCOXON: {"color": "#ea580c", "ls": "--"},
    HYPERBAND: {"color": "#ca8a04", "ls": "-."}, OURS: {"color": "#2563eb", "lw": 2.5},
}  # fmt: skip

OVERHEAD = 0.03  # of a search's seconds
TWO_AT_A_TIME = 0.75  # of the seconds of one at a time


class Scale(NamedTuple):
    """Amount of work to measure."""

    digits: int  # of each of the ten
    photographs: int  # in all
    seeds: int
    trials: int
    searched: int  # trials of the search with measured overhead
    parallel: int  # trials of the searches with one and with two at a time


FULL = Scale(digits=20, photographs=180, seeds=5, trials=30, searched=30, parallel=8)
QUICK = Scale(digits=15, photographs=120, seeds=1, trials=8, searched=4, parallel=2)


class Job(NamedTuple):
    """All searches of one seed on one data set, for one process."""

    subject: str
    data: DataSettings
    trials: int


JOB = TypeAdapter(Job)


class JobResult(NamedTuple):
    """Results of a job: each contestant's search, and the trial of its best settings with another seed."""

    job: Job
    searches: dict[str, SearchResult]
    final: dict[str, Trial]

    def json(self) -> dict[str, Any]:
        """All but the job, as plain values."""
        return {
            name: {
                "trials": [trial.json() for trial in search.trials], "spent": search.spent,
                "final": self.final[name].json(),
            }
            for name, search in self.searches.items()
        }  # fmt: skip

    @classmethod
    def from_json(cls, job: Job, values: Mapping[str, Any]) -> "JobResult":
        """Read back what ``json`` gave."""
        searches = {
            name: SearchResult([*map(Trial.from_json, search["trials"])], search["spent"])
            for name, search in values.items()
        }
        return cls(job, searches, {name: Trial.from_json(search["final"]) for name, search in values.items()})

    @property
    def plains_best(self) -> Trial:
        """The contestant that the others are compared with."""
        return best_of(self.searches[PLAIN])

    @property
    def error(self) -> float:
        """The standard error of plain's best mean accuracy."""
        return max(self.plains_best.std_accuracy / math.sqrt(FOLDS), MIN_ERROR)

    def cost(self, name: str) -> float:
        """Multiply-adds of a contestant's whole search."""
        return self.searches[name].spent[-1]

    def to_target(self, name: str) -> float:
        """Multiply-adds until plain's best is reached within one standard error."""
        trials, spent = self.searches[name]
        there = np.array(_so_far(trials)) >= self.plains_best.mean_accuracy - self.error
        return float(spent[there.argmax()]) if there.any() else NEVER

    def over(self, rival: str) -> float:
        """Ratio of our multiply-adds until then to a rival's; to all of them if it never got there."""
        return self.to_target(OURS) / min(self.to_target(rival), self.cost(rival))

    def gain(self, name: str) -> float:
        """Its best accuracy minus plain's, in standard errors."""
        return (best_of(self.searches[name]).mean_accuracy - self.plains_best.mean_accuracy) / self.error

    def final_gain(self, name: str) -> float:
        """Its final accuracy minus plain's, in standard errors."""
        return (self.final[name].mean_accuracy - self.final[PLAIN].mean_accuracy) / self.error


def best_of(search: SearchResult) -> Trial:
    """The complete trial with the highest mean accuracy."""
    complete = [trial for trial in search.trials if trial.state == "complete"]
    return max(complete, key=lambda trial: trial.mean_accuracy)


def main() -> None:
    """Measure and print."""
    options = arguments()
    scale = QUICK if options.quick else FULL
    if options.images is not None:
        scale = scale._replace(photographs=options.images)
    if scale.photographs < FEWEST:
        raise SettingsError(f"--images must be at least {FEWEST}, got {scale.photographs}")
    if options.first_seed < 0:
        raise SettingsError(f"--first-seed must be at least 0, got {options.first_seed}")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    echo(machine("torch", "hyperopt", "optuna"))
    claims: Claims = {}
    with tempfile.TemporaryDirectory() as folder:
        if options.part != "timed":
            results = compete(jobs(options.data, scale, options.first_seed, Path(folder)))
            claims |= counted(results)
            write(results, options.plots, options.trials)
        if options.part != "counted":
            claims |= timed(scale, Path(folder))
    conclude(claims, options.json)


def arguments() -> argparse.Namespace:
    """Arguments of the command line; the output paths are writable."""
    parser = argument_parser(__doc__, quick="fewer seeds, trials and images")
    parser.add_argument("--data", type=Path, help="folder of photographs, instead of drawn flowers")
    parser.add_argument("--images", type=int, help="how many of them to use")
    parser.add_argument("--first-seed", type=int, default=0, help="the first of the consecutive seeds; default 0")
    parser.add_argument("--part", choices=["counted", "timed", "all"], default="all", help="what to measure")
    parser.add_argument("--plots", type=Path, help="folder for tuning.png, an image of the searches")
    parser.add_argument("--trials", type=Path, help="file for all trials, a line of JSON each")
    options = parser.parse_args()
    try:
        if options.plots:
            options.plots.mkdir(parents=True, exist_ok=True)
        if options.trials:
            options.trials.touch()
    except OSError as error:
        raise SettingsError(f"{error.filename} cannot be written: {error.strerror}") from None
    return options


# --- what is counted in multiply-adds ------------------------------------------------------------


def jobs(photographs: Path | None, scale: Scale, first_seed: int, scratch: Path) -> list[Job]:
    """Both data sets, each with all seeds."""
    files = listed(photographs) if photographs else draw(scratch / "drawn", scale.photographs)
    count = min(scale.photographs, len(files))
    chosen = [files[number * len(files) // count] for number in range(count)]
    sets: dict[str, dict[str, Any]] = {
        f"digits ({scale.digits} a class)": {
            "data": str(write_digits(scratch / "digits", scale.digits)), "flip": False,
        },
        f"photographs ({count})": {"data": str(link(chosen, scratch / "photographs"))},
    }  # fmt: skip
    common = {"weights": "none", "cache_dir": scratch / "cache"}
    return [
        Job(subject, DataSettings.model_validate({**about, **common, "seed": seed}), scale.trials)
        for seed, (subject, about) in product(range(first_seed, first_seed + scale.seeds), sets.items())
    ]


def compete(todo: Sequence[Job]) -> list[JobResult]:
    """Run jobs in processes, and print their progress."""
    waiting, results = deque(enumerate(todo)), dict[int, JobResult]()
    with WorkerPool(PROCESSES, "benchmarks.tuning:take_part") as pool:
        while waiting or pool.n_idle < pool.size:
            while waiting and pool.n_idle:
                key, job = waiting.popleft()
                pool.start(key, JOB.dump_python(job, mode="json"))
            for event in pool.wait(None):
                match event.kind:
                    case "progress":
                        echo(event.value)
                    case "done":
                        results[event.key] = JobResult.from_json(todo[event.key], event.value)
                    case "error":
                        raise event.value
                    case _:
                        raise TrainingError(f"{todo[event.key].subject}: {event.value}")
    return [results[key] for key in sorted(results)]


def take_part(task: Any, report: Callable[[str], None]) -> dict[str, Any]:
    """One process's part: all contestants in turn; the job and what came of it are JSON."""
    mute()
    job = JOB.validate_python(task)
    arena, searches, final = Arena(job.data), dict[str, SearchResult](), dict[str, Trial]()
    afresh = Arena(job.data.model_copy(update={"seed": job.data.seed + OTHER_SEED}))
    for name, contestant in CONTESTANTS.items():
        began = time.perf_counter()
        search = searches[name] = contestant(arena, job.trials)
        final[name] = afresh.run(0, best_of(search).settings)
        accuracies = f"best {best_of(search).mean_accuracy:.4f}, finally {final[name].mean_accuracy:.4f}"
        report(
            f"{job.subject}, seed {job.data.seed}, {name}: {search.spent[-1]:.3g} multiply-adds, {accuracies},"
            f" {time.perf_counter() - began:.0f} s"
        )
    return JobResult(job, searches, final).json()


TARGET = "multiply-adds to plain's best within one standard error"
CLAIMS: Sequence[tuple[str, Callable[[JobResult], float], float, str]] = (  # value of a seed, goal, which is better
    (f"{TARGET}: ours over all of plain's", lambda one: one.to_target(OURS) / one.cost(PLAIN), 0.10, "lower"),
    (f"{TARGET}: ours over {WILCOXON}'s", lambda one: one.over(WILCOXON), 1.0, "lower"),
    (f"{TARGET}: ours over {HYPERBAND}'s", lambda one: one.over(HYPERBAND), 1.0, "lower"),
    ("multiply-adds of a study: ours over plain's", lambda one: one.cost(OURS) / one.cost(PLAIN), 0.15, "lower"),
    ("best accuracy: ours minus plain's in standard errors", lambda one: one.gain(OURS), -1.0, "higher"),
    ("final accuracy: ours minus plain's in standard errors", lambda one: one.final_gain(OURS), -1.0, "higher"),
)
NO_WORSE = 0.9  # of all seeds: the share whose final accuracy is at most one standard error below plain's


def counted(results: Sequence[JobResult]) -> Claims:
    """A table and claims for each data set."""
    claims = {}
    for subject, seeds in by_subject(results).items():
        echo(f"\n{subject}, medians over {len(seeds)} seeds\n\n{_standings(seeds)}")
        about = f"{subject}, {seeds[0].job.trials} trials of {FOLDS} folds, median over {len(seeds)} seeds"
        for name, value, goal, better in CLAIMS:
            claims[f"{subject.split()[0]}: {name}"] = Claim(_median(map(value, seeds)), goal, better, about)
    no_worse = np.mean([one.final_gain(OURS) >= -1 for one in results])
    about = f"all data, {len(results)} seeds"
    claims["share of seeds with a final accuracy within one standard error of plain's, or above"] = Claim(
        float(no_worse), NO_WORSE, "higher", about
    )
    return claims


def by_subject(results: Sequence[JobResult]) -> dict[str, list[JobResult]]:
    """The seeds of each data set."""
    subjects: dict[str, list[JobResult]] = defaultdict(list)
    for one in results:
        subjects[one.job.subject].append(one)
    return subjects


def _standings(seeds: Sequence[JobResult]) -> str:
    headings = [
        "", "multiply-adds", "of plain's", "seconds", "complete", "to target", "reached", "best accuracy",
        "minus plain's, standard errors", "final accuracy", "minus plain's, standard errors",
    ]  # fmt: skip
    rows = []
    for name in CONTESTANTS:
        searches, there = [one.searches[name].trials for one in seeds], [one.to_target(name) for one in seeds]
        rows.append([
            name,
            f"{_median(one.cost(name) for one in seeds):.3g}",
            f"{_median(one.cost(name) / one.cost(PLAIN) for one in seeds):.2f}",
            f"{_median(sum(fold.seconds for trial in trials for fold in trial.folds) for trials in searches):,.0f}",
            f"{_median(sum(trial.state == 'complete' for trial in trials) for trials in searches):.0f}",
            "never" if _median(there) > NEVER / 3 else f"{_median(there):.3g}",
            f"{sum(cost < NEVER for cost in there)} of {len(seeds)}",
            f"{_median(best_of(one.searches[name]).mean_accuracy for one in seeds):.4f}",
            f"{_median(one.gain(name) for one in seeds):+.2f}",
            f"{_median(one.final[name].mean_accuracy for one in seeds):.4f}",
            f"{_median(one.final_gain(name) for one in seeds):+.2f}",
        ])  # fmt: skip
    return table(headings, rows)


def _so_far(trials: Sequence[Trial]) -> list[float]:
    """The best mean accuracy of all complete trials, after each trial; minus infinity before the first."""
    means = (trial.mean_accuracy if trial.state == "complete" else -math.inf for trial in trials)
    return list(accumulate(means, max))


def _median(values: Iterable[float]) -> float:
    return float(np.median(list(values)))


def write(results: Sequence[JobResult], plots: Path | None, trials: Path | None) -> None:
    """Write the requested files: the plot, and each trial of each search."""
    if plots:
        plot(results).savefig(plots / "tuning.png", dpi=120)
    if trials:
        with trials.open("w") as file:
            for one in results:
                about = {"subject": one.job.subject, "seed": one.job.data.seed}
                for name, (searched, _) in one.searches.items():
                    file.writelines(json.dumps({**about, "search": name, **trial.json()}) + "\n" for trial in searched)


def plot(results: Sequence[JobResult]) -> Figure:
    """The best accuracy so far against multiply-adds, a line a contestant."""
    subjects = by_subject(results)
    figure = Figure(figsize=(5.5 * len(subjects), 4.4), layout="constrained")
    for axes, subject in zip(figure.subplots(1, len(subjects), squeeze=False)[0], subjects, strict=True):
        for name, style in LINE_STYLES.items():
            _draw_line(axes, [one.searches[name] for one in subjects[subject]], {"label": name, **style})
        axes.set(title=subject, xlabel="multiply-adds", xlim=(0, None))
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("best mean accuracy so far, median over the seeds")
    figure.axes[-1].legend(loc="lower right")
    return figure


def _draw_line(axes: Axes, searches: Sequence[SearchResult], style: Mapping[str, Any]) -> None:
    """Draw a line from the point where all seeds have a complete trial to a dot where half of the searches are over."""
    at = np.linspace(0, np.median([search.spent[-1] for search in searches]), 500)
    lines: list[NDArray[np.float64]] = []
    for trials, cost in searches:
        best = np.array([-math.inf, *_so_far(trials)])
        lines.append(best[np.searchsorted(cost, at, side="right")])
    middle = np.median(lines, axis=0)
    middle[np.isinf(lines).any(axis=0)] = math.nan
    (line,) = axes.step(at, middle, where="post", **style)
    axes.plot(at[-1], middle[-1], "o", color=line.get_color())


# --- what is measured in seconds ----------------------------------------------------------------


def timed(scale: Scale, folder: Path) -> Claims:
    """Time that a search spends outside of training, and the gain of a second process."""
    base = {"preset": "quick", "weights": "none", "study_dir": folder / "studies", "cache_dir": folder / "cache"}

    def settings(**changed: Any) -> tuning.TuneSettings:
        return tuning.TuneSettings.model_validate({**base, **changed})

    def about(trials: int) -> str:
        return f"digits, simple_cnn at 32 px, {trials} trials of {FOLDS} folds, {usable_cores()} cores"

    def at_random(parallel: int) -> float:
        return search(settings(max_trials=scale.parallel, prune=False, parallel=parallel), random_only=True)[0]

    with chdir(folder):
        search(settings(max_trials=1))  # the database is made, the data decoded, and the workers' modules imported
        seconds, trained = search(settings(max_trials=scale.searched))
        both = {parallel: at_random(parallel) for parallel in (1, 2)}
    echo(f"\na search of {seconds:.1f} s trained for {trained:.1f} s; random trials: one at a time {both[1]:.1f} s, two"
        f" at a time {both[2]:.1f} s\n")  # fmt: skip
    return {
        "share of a search that is not training": Claim(
            1 - trained / seconds, OVERHEAD, "lower", about(scale.searched)
        ),
        "seconds of a search: two at a time over one": Claim(
            both[2] / both[1],
            TWO_AT_A_TIME,
            "lower",
            f"{about(scale.parallel)}, random trials; one at a time has all cores",
        ),
    }


def search(settings: tuning.TuneSettings, *, random_only: bool = False) -> tuple[float, float]:
    """Seconds of a search, as ``tune`` does it until the final training, and those spent in folds."""
    client = connect("sqlite:///mlflow.db")
    job = tuning.start_study(settings)
    if random_only:
        trials, record = settings.trials, job.journal.append
        job = replace(job, study=Study(StudyConfig(job.space, settings.seed, trials, prune=False), record=record))
    with job.journal, tuning.study_run(job, client) as run:
        logger = tuning.study_logger(job, run)
        began = time.perf_counter()
        tuning.search(job, logger)
        logger.flush()
        log_study(run, job.study, job.space, job.journal.path)
        seconds = time.perf_counter() - began
        job.journal.append({FINISHED: None})
    return seconds, sum(fold.seconds for trial in job.study.trials for fold in trial.folds)


if __name__ == "__main__":
    run_script(main)

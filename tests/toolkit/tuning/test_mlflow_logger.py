"""MLflow shows each trial completely and once, whatever happens to MLflow, the process, or a call."""

import itertools
import json
import math
import sqlite3
from contextlib import chdir, closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest
from PIL import Image
from torch import nn

from support.colours import COLOURS, colour_image
from support.mlflow_stores import Clock, file_of
from toolkit.errors import TrackingError
from toolkit.tracking.connection import RETRY_SECONDS, connect
from toolkit.tracking.run import Run
from toolkit.training.data.cache import decode
from toolkit.training.data.catalogue import open_catalogue
from toolkit.training.data.dataset import TrainingData
from toolkit.training.data.splits import split
from toolkit.training.hyperparameters import Hyperparameters
from toolkit.training.loop import EpochMetrics, FitResult
from toolkit.training.results.run_logging import log_folds
from toolkit.tuning.mlflow_logger import StudyLogger, log_study
from toolkit.tuning.space import FULL
from toolkit.tuning.study import Proposal, Study, StudyConfig
from toolkit.tuning.trial import Fold, Trial

SEED = 5
NUMBERS = itertools.count()
SETTINGS = {"model_type": "simple_cnn", "epochs": 3, "learning_rate": 0.001, "dropout": 0.25}

GONE = "MLflow does not answer; the search continues, and pending data is sent later"
BACK = "MLflow answers again; all pending data has been sent"


def fold(*curve):
    epochs = tuple(
        asdict(EpochMetrics(number, 0.5, 0.75, 0.25, accuracy, 1e-3, 20.0, 30.0, 2.0, 100.0))
        for number, accuracy in enumerate(curve, 1)
    )
    return Fold(epochs, 1 + curve.index(max(curve)), 2.0 * len(curve), 80 * len(curve), 80.0 * len(curve))


def trial(number, *folds, state="complete", reason=""):
    return Trial(number, {**SETTINGS, "epochs": number + 1}, state, folds, 9.0, reason)


PRUNED = "after fold 1 of 2: 0.5000 is below 0.7500, the worst fold of trial 1"
TRIALS = (
    trial(0, fold(0.5, 0.75), fold(0.875)),
    trial(1, state="failed", reason="the loss became nan"),
    trial(2, fold(0.5), state="pruned", reason=PRUNED),
)


# --- a store, and what is in it -----------------------------------------------------------------


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    with chdir(folder):  # where MLflow then keeps files
        yield connect(f"sqlite:///{folder}/mlflow.db")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for (index, colour), part in itertools.product(enumerate(COLOURS), ("train", "test")):
        (folder / part / colour).mkdir(parents=True)
        (folder / part / colour / "a.png").write_bytes(colour_image(colour, 10 * index + (part == "test"), 16))
    images = decode(open_catalogue(str(folder)), 16, progress=False)
    return TrainingData(images, split(images.catalogue, 0.15), None, "random")


@pytest.fixture(scope="module", autouse=True)
def _no_git():
    """Each run asks for the version of the code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "")
        yield


@pytest.fixture
def study(client):
    return Run(client, f"study {next(NUMBERS)}", role="study", name="digits-1")


@pytest.fixture(scope="module")
def make_logger(data):
    """A function that makes the logger of a study, as each searching process does."""

    def log_fold(run, settings, number, fold):
        history = [EpochMetrics(**epoch) for epoch in fold.epochs]
        fitted = FitResult(nn.Identity(), history, fold.best_epoch, fold.accuracy, seconds=fold.seconds)
        log_folds(run, Hyperparameters(**settings), data, SEED, verbose=False)(number, fitted)

    def make_logger(study, clock=None):
        return StudyLogger(study, {"seed": SEED}, log_fold, clock or Clock())

    return make_logger


def proposal(trial):
    return Proposal(trial.number, trial.settings)


def best_of(trials):
    complete = [trial for trial in trials if trial.state == "complete"]
    return max(complete, key=lambda trial: trial.mean_accuracy, default=None)


def work(logger, ended_trials, trials=TRIALS):
    """A search that resumes after ``ended_trials``: a trial counts before MLflow sees its end."""
    logger.sync(ended_trials)
    for trial in trials[len(ended_trials) :]:
        logger.on_trial_start(proposal(trial))
        for number, one in enumerate(trial.folds):
            logger.on_fold_end(proposal(trial), number, one)
        ended_trials.append(trial)
        logger.on_trial_end(trial, best_of(ended_trials))
    logger.flush()


def shown(study):
    """The study's run and all nested runs with their tags, parameters and metrics, without an order in time."""
    runs = study.client.search_runs([study.experiment_id])
    names = {run.info.run_id: run.info.run_name for run in runs}
    with closing(sqlite3.connect(file_of(study.client))) as database:
        query = "SELECT key, step, value FROM metrics WHERE run_uuid = ? ORDER BY key, step, timestamp"
        metrics = {id_: database.execute(query, (id_,)).fetchall() for id_ in names}
    tags = ("role", "trial", "fold", "state", "reason", "failure", "seed")
    return sorted(
        (
            {
                "name": run.info.run_name,
                "in": names.get(run.data.tags.get("mlflow.parentRunId")),
                "status": run.info.status,
                "tags": {name: run.data.tags[name] for name in tags if name in run.data.tags},
                "params": run.data.params,
                "metrics": metrics[run.info.run_id],
            }
            for run in runs
        ),
        key=str,
    )


def of_trial(study, number):
    (found,) = (run for run in shown(study) if run["tags"].get("trial") == str(number + 1))
    return found


def made(study):
    """The names of the runs of trials and folds in the order in which they were made."""
    runs = study.client.search_runs([study.experiment_id], order_by=["attributes.start_time ASC"])
    return [run.info.run_name for run in runs if run.info.run_id != study.id]


# --- the run of a trial -------------------------------------------------------------------------


def test_a_running_trial_is_a_running_run(study, make_logger):
    logger = make_logger(study)
    logger.on_trial_start(proposal(TRIALS[0]))
    assert of_trial(study, 0) == {
        "name": "trial 1",
        "in": "digits-1",
        "status": "RUNNING",
        "tags": {"role": "trial", "trial": "1", "state": "running", "seed": "5"},
        "params": {"model_type": "simple_cnn", "epochs": "1", "learning_rate": "0.001", "dropout": "0.25"},
        "metrics": [],
    }
    logger.on_fold_end(proposal(TRIALS[0]), 0, TRIALS[0].folds[0])
    assert [run["name"] for run in shown(study) if run["in"] == "trial 1"] == ["fold 1"]


SAME = "as trial 1, which had the same settings"
KILLED = "its process was killed by SIGKILL"
HALF = {"fold_accuracy": [0.5, 0.5], "training_images": [160.0], "training_multiply_adds": [160.0]}


@pytest.mark.parametrize(
    ("trial", "status", "reason", "metrics"),
    [
        (
            TRIALS[0], "FINISHED", {},
            {
                "fold_accuracy": [0.75, 0.875], "mean_cv_accuracy": [0.8125],
                "std_cv_accuracy": [pytest.approx(0.125 / math.sqrt(2))], "training_images": [240.0],
                "training_multiply_adds": [240.0],
            },
        ),
        (
            TRIALS[1], "FAILED", {"failure": "the loss became nan"},
            {"training_images": [0.0], "training_multiply_adds": [0.0]},
        ),
        (
            TRIALS[2], "KILLED", {"reason": PRUNED},
            {"fold_accuracy": [0.5], "training_images": [80.0], "training_multiply_adds": [80.0]},
        ),
        (
            trial(3, fold(0.5), fold(0.5), reason=SAME), "FINISHED", {"reason": SAME},
            {**HALF, "mean_cv_accuracy": [0.5], "std_cv_accuracy": [0.0]},
        ),
        (trial(3, fold(0.5), fold(0.5), state="failed", reason=KILLED), "FAILED", {"failure": KILLED}, HALF),
    ],
    ids=["complete", "failed", "pruned", "repeated", "failed late"],
)  # fmt: skip
def test_a_finished_trial(study, make_logger, trial, status, reason, metrics):
    """Its mean is there when it is that of all folds, and only then."""
    make_logger(study).on_trial_end(trial, None)
    ended = of_trial(study, trial.number)
    assert ended["status"] == status
    assert sorted(ended["metrics"]) == sorted(
        (name, step, value)
        for name, values in {**metrics, "training_time_s": [9.0]}.items()
        for step, value in enumerate(values)
    )
    number = str(trial.number + 1)
    assert ended["tags"] == {"role": "trial", "trial": number, "seed": "5", "state": trial.state, **reason}
    folds = [run for run in shown(study) if run["in"] == f"trial {number}"]
    assert [(run["tags"]["fold"], run["status"]) for run in folds] == [
        (str(number), "FINISHED") for number in range(len(trial.folds))
    ]
    for run, one in zip(folds, trial.folds, strict=True):
        assert run["params"]["epochs"] == str(trial.settings["epochs"])
        assert ("best_val_accuracy", 0, one.accuracy) in run["metrics"]
        assert [value for name, _, value in run["metrics"] if name == "val_accuracy"] == list(one.curve)


@pytest.mark.parametrize("later", [False, True], ids=["as it goes", "by another process"])
def test_the_study_shows_the_best_so_far_after_each_trial(study, make_logger, later):
    """A pruned trial is never the best, however lucky its folds were."""
    lucky, better = trial(2, fold(1.0), state="pruned", reason=PRUNED), trial(3, fold(0.875), fold(1.0))
    trials = (TRIALS[1], TRIALS[0], lucky, better)
    if later:
        make_logger(study).sync(trials)
    else:
        work(make_logger(study), [], trials)
    (of_study,) = (run for run in shown(study) if run["in"] is None)
    assert of_study["metrics"] == [("best_so_far", 0, 0.8125), ("best_so_far", 2, 0.8125), ("best_so_far", 3, 0.9375)]


def test_an_interrupted_trial_resumes_in_the_same_run(study, make_logger):
    logger = make_logger(study)
    logger.on_trial_start(proposal(TRIALS[0]))
    logger.on_trial_start(proposal(TRIALS[2]))
    logger.on_trial_interrupted(proposal(TRIALS[0]))
    assert [(of_trial(study, number)["status"], of_trial(study, number)["tags"]["state"]) for number in (0, 2)] == [
        ("KILLED", "running"),
        ("RUNNING", "running"),
    ]
    again = make_logger(study)
    again.on_trial_start(proposal(TRIALS[0]))
    assert of_trial(study, 0)["status"] == "RUNNING"
    again.on_trial_end(TRIALS[0], TRIALS[0])
    assert of_trial(study, 0)["status"] == "FINISHED"


# --- MLflow is away -----------------------------------------------------------------------------


@pytest.fixture
def away(client):
    """A function that takes the store away or brings it back."""
    here = file_of(client)
    there = here.with_name("elsewhere")

    def move(gone):
        (here if gone else there).rename(there if gone else here)

    yield move
    if there.exists():
        move(False)


def test_calls_during_an_outage_are_made_later_in_order_and_once(study, make_logger, away, capsys):
    clock = Clock()
    logger = make_logger(study, clock)
    logger.on_trial_start(proposal(TRIALS[0]))
    logger.on_fold_end(proposal(TRIALS[0]), 0, TRIALS[0].folds[0])
    away(True)
    logger.on_fold_end(proposal(TRIALS[0]), 1, TRIALS[0].folds[1])
    logger.on_trial_end(TRIALS[0], TRIALS[0])
    clock.now += RETRY_SECONDS
    logger.on_trial_start(proposal(TRIALS[1]))
    logger.on_trial_end(TRIALS[1], TRIALS[0])
    logger.on_trial_start(proposal(TRIALS[2]))
    logger.on_trial_interrupted(proposal(TRIALS[2]))
    assert capsys.readouterr().out == f"{GONE}\n"
    away(False)
    clock.now += RETRY_SECONDS - 1
    logger.on_trial_start(proposal(trial(3)))
    assert made(study) == ["trial 1", "fold 1"], "it is not asked all the time"
    clock.now += 1
    logger.on_fold_end(proposal(trial(3)), 0, fold(0.5))
    assert made(study) == ["trial 1", "fold 1", "fold 2", "trial 2", "trial 3", "trial 4", "fold 1"]
    assert [of_trial(study, number)["status"] for number in range(4)] == ["FINISHED", "FAILED", "KILLED", "RUNNING"]
    assert capsys.readouterr().out == f"{BACK}\n"


def test_flush_needs_an_answer(study, make_logger, away):
    logger = make_logger(study)
    logger.flush()
    away(True)
    logger.flush()  # there is nothing to do
    logger.on_trial_start(proposal(TRIALS[0]))
    with pytest.raises(TrackingError, match=r"^MLflow does not answer$"):
        logger.flush()
    away(False)
    logger.flush()
    assert of_trial(study, 0)["status"] == "RUNNING"


def test_a_deleted_run_is_created_again(study, make_logger, client, capsys):
    clock = Clock()
    logger = make_logger(study, clock)
    work(logger, [], (trial(3, fold(0.5), state="pruned"),))
    logger.on_trial_start(proposal(TRIALS[0]))
    logger.on_fold_end(proposal(TRIALS[0]), 0, TRIALS[0].folds[0])
    (run,) = client.search_runs([study.experiment_id], "tags.trial = '1'")
    client.delete_run(run.info.run_id)
    logger.on_trial_end(TRIALS[0], TRIALS[0])
    output = capsys.readouterr().out
    assert output.startswith("cannot log metrics: ")
    assert output.endswith("; the search continues, and pending data is sent later\n")
    logger.on_trial_start(proposal(TRIALS[1]))
    clock.now += RETRY_SECONDS
    logger.on_trial_end(TRIALS[1], TRIALS[0])
    assert [of_trial(study, number)["status"] for number in (0, 1)] == ["FINISHED", "FAILED"]
    assert [run["name"] for run in shown(study) if run["in"] == "trial 1"] == ["fold 1", "fold 2"]
    assert capsys.readouterr().out == f"{BACK}\n"


# --- a call breaks off --------------------------------------------------------------------------

WRITES = ("create_run", "delete_run", "delete_tag", "log_batch", "log_metric", "set_terminated", "update_run")


class Killed(BaseException):
    """Nothing more is done, not even to clean up."""


class Line:
    """A client that breaks off at its n-th call that writes, before or after that is done.

    Between two of them nothing changes, so that there is no need to break off at others.
    """

    def __init__(self, client, last, error, *, done=False):
        self._client, self._left, self._error, self._done = client, last, error, done

    def __getattr__(self, name):
        method = getattr(self._client, name)
        return partial(self._write, method) if name in WRITES else method

    def _write(self, method, *args, **kwargs):
        self._left -= 1
        if self._left == 0 or (self._left < 0 and isinstance(self._error, Killed)):
            if self._done:
                method(*args, **kwargs)
            raise self._error
        return method(*args, **kwargs)


CRASHED = trial(0, fold(0.5, 0.25), state="failed", reason=KILLED)


def series():
    """A complete trial, and then one more each time, to be broken off at a call that is one further."""
    for last in itertools.count(1):
        crashed = tuple(replace(CRASHED, number=number) for number in range(1, last + 1))
        yield last, (TRIALS[0], *crashed)


@pytest.fixture(scope="module")
def whole(client, make_logger):
    """What is shown when nothing breaks off; the last trial is a crashed one."""
    study = Run(client, "whole", role="study", name="digits-1")
    work(make_logger(study), [], (*TRIALS, replace(CRASHED, number=3)))
    assert len(shown(study)) == 9
    return shown(study)


def require_whole(study, count, whole):
    """Each of so many crashed trials is logged like an uninterrupted one; the study shows each end."""
    (crashed,) = (run for run in whole if run["name"] == "trial 4")
    (fold,) = (run for run in whole if run["in"] == "trial 4")
    expected = []
    for number in range(2, count + 2):
        expected += [
            {**crashed, "name": f"trial {number}", "tags": {**crashed["tags"], "trial": str(number)}},
            {**fold, "in": f"trial {number}"},
        ]
    found = [run for run in shown(study) if run["name"] != "trial 1" and run["in"] != "trial 1"]
    assert [run for run in found if run["in"]] == sorted(expected, key=str), made(study)
    (of_study,) = (run for run in found if not run["in"])
    assert of_study["metrics"] == [("best_so_far", number, 0.8125) for number in range(count + 1)]


@pytest.mark.parametrize("error", [Killed, KeyboardInterrupt])
def test_a_process_that_ends_within_any_call_loses_nothing(client, study, make_logger, whole, error):
    """Before it ends by Ctrl-C, it marks the running trial as stopped."""
    ended_trials = []
    work(make_logger(study), ended_trials, TRIALS[:1])
    for last, trials in series():
        study.client = Line(client, last, error())
        logger = make_logger(study)
        try:
            work(logger, ended_trials, trials)
            break
        except error:
            study.client = client
        for trial in trials[len(ended_trials) :] if error is KeyboardInterrupt else ():
            logger.on_trial_interrupted(proposal(trial))
            (run,) = client.search_runs([study.experiment_id], f"tags.trial = '{last + 1}'")
            assert run.info.status == "KILLED"
        work(make_logger(study), ended_trials, trials)
    assert last == 11  # run, settings; a fold's run, settings, metrics, end; metrics, the study's, tags, end
    study.client = client
    require_whole(study, last, whole)


def test_a_lost_answer_to_any_call_loses_nothing(client, study, make_logger, whole, capsys):
    ended_trials = []
    work(make_logger(study), ended_trials, TRIALS[:1])
    for last, trials in series():
        study.client = Line(client, last, ConnectionError("Connection aborted"), done=True)
        work(make_logger(study, partial(next, itertools.count(0, RETRY_SECONDS))), ended_trials, trials)
        if not (output := capsys.readouterr().out):
            break
        assert output.endswith(f": the connection broke off; {GONE.partition('; ')[2]}\n{BACK}\n")
    assert last == 11
    study.client = client
    require_whole(study, last, whole)


def test_repeated_kills_do_not_change_the_result(client, study, make_logger, whole):
    ended_trials = []
    killed = 0
    study.client = Line(client, 11, Killed())
    while study.client is not client:
        try:
            work(make_logger(study), ended_trials, (*TRIALS, replace(CRASHED, number=3)))
            study.client = client
        except Killed:
            killed += 1
            study.client = Line(client, 11, Killed())
    assert shown(study) == whole
    assert 4 <= killed <= 20


# --- what another process has logged -------------------------------------------------------------


def test_logged_trials_are_left_alone(client, study, make_logger):
    ended_trials = []
    work(make_logger(study), ended_trials)
    study.client = Line(client, 1, AssertionError("nothing is written"))
    make_logger(study).sync(ended_trials)


def test_trials_missing_in_mlflow_are_logged(study, make_logger, whole):
    make_logger(study).sync([*TRIALS, replace(CRASHED, number=3)])
    assert shown(study) == whole


def test_trials_are_read_in_pages(client, study, make_logger):
    """And of two runs of one trial, made by a repeated request, the answered one counts."""

    class Pages:
        """A client of a store that gives a few runs at a time."""

        def __getattr__(self, name):
            return getattr(client, name)

        def search_runs(self, *args, **kwargs):
            return client.search_runs(*args, **{"max_results": 3, **kwargs})

    common = {"role": "trial", "mlflow.parentRunId": study.id, "state": "pruned"}
    missing = 10

    def add(number, started, **tags):
        tags = {**common, "trial": str(number + 1), **tags}
        return client.create_run(study.experiment_id, start_time=started, tags=tags).info.run_id

    add(7, 1, state="running")
    for number in range(12):
        if number != missing:
            client.set_terminated(add(number, 1000 + number), "KILLED")
    add(8, 1, state="running")
    study.client = Pages()
    trials = [trial(number, state="pruned") for number in range(12)]
    make_logger(study).sync(trials)
    runs = client.search_runs([study.experiment_id], "tags.role = 'trial'", order_by=["attributes.start_time DESC"])
    assert len(runs) == 14
    assert [run.data.tags["trial"] for run in runs if run.data.metrics] == [str(missing + 1)]


def test_an_interrupted_trial_that_another_process_pruned(study, make_logger):
    """Both have the status KILLED, so the status alone does not say what was logged."""
    logger = make_logger(study)
    logger.on_trial_start(proposal(TRIALS[2]))
    logger.on_trial_interrupted(proposal(TRIALS[2]))
    make_logger(study).sync([TRIALS[2]])
    assert of_trial(study, 2)["tags"]["state"] == "pruned"
    assert ("fold_accuracy", 0, 0.5) in of_trial(study, 2)["metrics"]


# --- the study ----------------------------------------------------------------------------------


@pytest.mark.parametrize("trials", [0, 3])
def test_a_study_is_logged_with_table_journal_and_plots(study, trials, tmp_path):
    (tmp_path / "journal.jsonl").write_text('{"about": {}}\n')
    searched = Study(StudyConfig(FULL, seed=0))
    for one in TRIALS[:trials]:
        searched.tell(replace(one, settings=searched.ask().settings))
    log_study(study, searched, FULL, tmp_path / "journal.jsonl")
    study.flush()
    files = {
        item.path: Path(study.client.download_artifacts(study.id, item.path))
        for item in study.client.list_artifacts(study.id)
    }
    assert files.pop("journal.jsonl").read_text() == '{"about": {}}\n'
    table = json.loads(files.pop("trials.json").read_text())
    counts = {"trials": trials, **dict.fromkeys(("complete_trials", "pruned_trials", "failed_trials"), trials // 3)}
    assert study.client.get_run(study.id).data.metrics == counts
    assert sorted(files) == ["cost.png", "importance.png", "study_history.png"]
    for path in files.values():
        with Image.open(path) as image:
            assert image.format == "PNG"
    assert [row["number"] for row in table] == list(range(trials))
    if trials:
        assert [(row["state"], row["mean_accuracy"], row["std_accuracy"]) for row in table] == [
            ("complete", 0.8125, pytest.approx(0.125 / math.sqrt(2))), ("failed", None, None), ("pruned", 0.5, None)
        ]  # fmt: skip
        assert table[0]["fold_accuracies"] == [0.75, 0.875]
        assert [table[2][key] for key in ("reason", "images", "multiply_adds", "seconds")] == [PRUNED, 80, 80.0, 9.0]
        assert table[0]["settings"] == dict(searched.trials[0].settings)

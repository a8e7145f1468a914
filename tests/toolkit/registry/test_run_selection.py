"""Which run is the best, on a real store; the runs have the digest of a bundle, and no bundle."""

import itertools
import math

import pytest

from support.servers import empty_store
from toolkit.bundle.files import DIGEST_TAG
from toolkit.errors import RegistryError, TrackingError
from toolkit.registry import run_selection
from toolkit.registry.run_selection import chosen_run, metric_mode, only_experiment, ranked_runs, usual_metric
from toolkit.tracking.connection import MlflowClient, connect
from toolkit.tracking.run import Run

NUMBERS = itertools.count()


@pytest.fixture
def client(database):
    return database


@pytest.fixture
def experiment(client, tmp_path_factory):
    name = f"selection {next(NUMBERS)}"
    client.create_experiment(name, artifact_location=str(tmp_path_factory.mktemp("files")))
    return name


def log_run(client, experiment, name, role="final", digest="d" * 64, **metrics):
    with Run(client, experiment, role=role, name=name, tags={DIGEST_TAG: digest} if digest else {}) as run:
        run.metrics(metrics)


def ranking(client, *words, **more):
    return [run.info.run_name for run in ranked_runs(client, *words, **more)]


def test_the_best_run_is_first_and_of_equal_ones_the_newer(client, experiment):
    for name, accuracy in [("older", 0.8), ("worst", 0.5), ("newer", 0.8), ("best", 0.9)]:
        log_run(client, experiment, name, accuracy=accuracy)
    assert ranking(client, experiment, "accuracy") == ["best", "newer", "older", "worst"]


def test_a_loss_is_minimized_by_default(client, experiment):
    for name, loss in [("low", 0.1), ("high", 0.9), ("middle", 0.5)]:
        log_run(client, experiment, name, val_loss=loss)
    assert ranking(client, experiment, "val_loss") == ["low", "middle", "high"]
    assert ranking(client, experiment, "val_loss", mode="max") == ["high", "middle", "low"]


def test_nan_and_infinity_are_never_the_best(client, experiment):
    for name, value in [("nan", math.nan), ("inf", math.inf), ("minus", -math.inf), ("number", 0.4)]:
        log_run(client, experiment, name, accuracy=value)
    log_run(client, experiment, "another metric", f1=0.9)
    for mode in ("max", "min"):
        assert ranking(client, experiment, "accuracy", mode=mode) == ["number"]


def test_only_finished_results_with_a_model_count(client, experiment):
    log_run(client, experiment, "study", role="study", accuracy=0.3)
    log_run(client, experiment, "final", accuracy=0.2)
    log_run(client, experiment, "trial", role="trial", accuracy=0.9)
    log_run(client, experiment, "fold", role="fold", accuracy=0.9)
    log_run(client, experiment, "no model", digest="", accuracy=0.9)
    killed = Run(client, experiment, role="final", name="killed", tags={DIGEST_TAG: "d" * 64})
    killed.metrics({"accuracy": 0.9})
    killed.end("KILLED")
    assert ranking(client, experiment, "accuracy") == ["study", "final"]


def test_the_ranking_is_exact_over_pages(client, experiment, monkeypatch):
    values = [0.3, -3.5, 1e-05, 1e22, 0.1 + 0.2, 5e-324, 0.3, -1e-300, 0.0, 0.3]
    for number, value in enumerate(values):
        log_run(client, experiment, str(number), score=value)
    for page, (mode, way) in itertools.product((1, 3, 100), (("min", 1), ("max", -1))):
        monkeypatch.setattr(run_selection, "PAGE_SIZE", page)
        expected = sorted(range(len(values)), key=lambda number: (way * values[number], -number))
        assert ranking(client, experiment, "score", mode=mode) == [str(number) for number in expected]


def test_every_metric_name_of_mlflow_can_be_ranked(client, experiment):
    metrics = ["a b", "group/loss", "top:5", "f1-score", "v2.accuracy", "größe"]
    for name, value in [("good", 0.9), ("bad", 0.1)]:
        log_run(client, experiment, name, **dict.fromkeys(metrics, value))
    for metric in metrics:
        assert ranking(client, experiment, metric, mode="max") == ["good", "bad"]


class CountingClient(MlflowClient):
    """Counts the runs that it was given."""

    runs = 0

    def search_runs(self, *words, **more):
        page = super().search_runs(*words, **more)
        self.runs += len(page)
        return page


def test_few_of_many_runs_are_read(client, experiment, monkeypatch):
    monkeypatch.setattr(run_selection, "PAGE_SIZE", 2)
    monkeypatch.setattr(run_selection, "MAX_READ", 3)
    for value in range(12):
        log_run(client, experiment, str(value), score=value)
    for role in ("trial", "fold"):
        log_run(client, experiment, role, role=role, digest="", score=99)
    counting = CountingClient(client.tracking_uri)
    assert next(ranked_runs(counting, experiment, "score")).info.run_name == "11"
    assert counting.runs <= 4  # a page at random and the first page of those ahead of it
    counting.runs = 0
    with pytest.raises(RegistryError, match=r"logged 'scores'; there are: score$"):
        next(ranked_runs(counting, experiment, "scores"))
    assert counting.runs <= 4


def test_errors_are_one_sentence(client, experiment):
    with pytest.raises(TrackingError, match=r"no experiment 'selction 0'; there are: selection \d"):
        ranking(client, "selction 0", "accuracy")
    log_run(client, experiment, "no model", digest="", accuracy=0.9)
    with pytest.raises(RegistryError, match=rf"'{experiment}' has no finished run that holds a model; let"):
        ranking(client, experiment, "accuracy")
    log_run(client, experiment, "model", best_val_accuracy=0.9, mean_cv_accuracy=math.nan, val_loss=math.inf)
    for metric, message in {
        "best_val_acc": r"logged 'best_val_acc'; there are: best_val_accuracy, mean_cv_accuracy, val_loss$",
        "x` DESC": r"logged 'x` DESC'; there are: ",
        "mean_cv_accuracy": r"has a finite value of 'mean_cv_accuracy'",
        "val_loss": r"has a finite value of 'val_loss'",
    }.items():
        with pytest.raises(RegistryError, match=message):
            ranking(client, experiment, metric)


def test_metric_mode():
    minimized = ("val_loss", "ERROR_rate", "training_time_s", "epoch_duration_s", "batch_ms_p95")
    assert {metric_mode(metric) for metric in minimized} == {"min"}


# --- when nothing, or one run, is named ---------------------------------------------------------


@pytest.fixture
def own_client(tmp_path):
    """Of a store that no other test uses."""
    (tmp_path / "mlflow.db").write_bytes(empty_store())
    return connect()


def test_only_experiment(own_client):
    with pytest.raises(RegistryError, match=r"^no experiment has a finished run that holds a model; .*train_cnn\.py$"):
        only_experiment(own_client)
    log_run(own_client, "empty", "no model", digest="", best_val_accuracy=0.9)
    log_run(own_client, "training", "model", best_val_accuracy=0.9)
    assert only_experiment(own_client) == "training"
    log_run(own_client, "my own", "model", best_val_accuracy=0.9)
    with pytest.raises(RegistryError) as caught:
        only_experiment(own_client)
    assert str(caught.value) == (
        "several experiments hold models: my own, training; choose one: register --experiment-name 'my own' or"
        " register --experiment-name training"
    )
    log_run(own_client, "hyperopt_tuning", "model", role="study", mean_cv_accuracy=0.9)
    assert only_experiment(own_client) == "hyperopt_tuning"


def test_usual_metric(client, experiment):
    log_run(client, experiment, "folds", best_val_accuracy=0.8, mean_cv_accuracy=0.8)
    assert usual_metric(client, experiment) == "mean_cv_accuracy"
    log_run(client, experiment, "one split", best_val_accuracy=0.9)
    assert usual_metric(client, experiment) == "best_val_accuracy"
    with pytest.raises(TrackingError, match="there is no experiment 'nowhere'"):
        usual_metric(client, "nowhere")


def test_chosen_run(client, experiment):
    whole = Run(client, experiment, role="final", name="whole", tags={DIGEST_TAG: "d" * 64})
    with pytest.raises(RegistryError, match=rf"^run {whole.id} is running; let it finish first$"):
        chosen_run(client, whole.id)
    whole.end("FINISHED")
    assert chosen_run(client, whole.id).info.run_name == "whole"
    with Run(client, experiment, role="fold", name="empty") as empty:
        pass
    with pytest.raises(RegistryError, match=rf"^run {empty.id} holds no model: it is a fold run and finished; "):
        chosen_run(client, empty.id)
    client.delete_run(whole.id)
    with pytest.raises(RegistryError, match=rf"^run {whole.id} was deleted$"):
        chosen_run(client, whole.id)
    for name in ("a" * 32, "no id", "x" * 400):
        with pytest.raises(RegistryError, match=rf"^there is no run '{name}'; a training prints its id at the end$"):
            chosen_run(client, name)

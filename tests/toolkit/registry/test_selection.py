"""Which run is the best, on a real store; the runs have the digest of a bundle, and no bundle."""

import itertools
import math

import pytest

from toolkit.bundle import DIGEST_TAG
from toolkit.errors import RegistryError, TrackingError
from toolkit.registry.selection import RANKED_A_PAGE, direction, model_of, ranked_runs
from toolkit.tracking import MlflowClient, Run, connect

NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> MlflowClient:
    return connect(f"sqlite:///{tmp_path_factory.mktemp('selection')}/mlflow.db")


@pytest.fixture
def experiment(client: MlflowClient, tmp_path_factory: pytest.TempPathFactory) -> str:
    name = f"experiment {next(NUMBERS)}"
    client.create_experiment(name, artifact_location=str(tmp_path_factory.mktemp("files")))
    return name


def log_run(
    client: MlflowClient, experiment: str, name: str, role: str = "final", digest: str = "d" * 64, **metrics: float
) -> None:
    with Run(client, experiment, role=role, name=name, tags={DIGEST_TAG: digest} if digest else {}) as run:
        run.metrics(metrics)


def ranking(client: MlflowClient, *words: str, **more: str) -> list[str]:
    return [run.info.run_name for run in ranked_runs(client, *words, **more)]


def test_the_best_comes_first_and_of_equals_the_newer(client: MlflowClient, experiment: str) -> None:
    for name, accuracy in [("older", 0.8), ("worst", 0.5), ("newer", 0.8), ("best", 0.9)]:
        log_run(client, experiment, name, accuracy=accuracy)
    assert ranking(client, experiment, "accuracy") == ["best", "newer", "older", "worst"]


def test_of_a_loss_less_is_better_unless_told(client: MlflowClient, experiment: str) -> None:
    for name, loss in [("low", 0.1), ("high", 0.9), ("middle", 0.5)]:
        log_run(client, experiment, name, val_loss=loss)
    assert ranking(client, experiment, "val_loss") == ["low", "middle", "high"]
    assert ranking(client, experiment, "val_loss", mode="max") == ["high", "middle", "low"]


@pytest.mark.parametrize("mode", ["max", "min"])
def test_what_is_no_number_is_never_the_best(client: MlflowClient, experiment: str, mode: str) -> None:
    for name, value in [("nan", math.nan), ("inf", math.inf), ("minus", -math.inf), ("number", 0.4)]:
        log_run(client, experiment, name, accuracy=value)
    log_run(client, experiment, "another metric", f1=0.9)
    assert ranking(client, experiment, "accuracy", mode=mode) == ["number"]


def test_only_finished_results_with_a_model_count(client: MlflowClient, experiment: str) -> None:
    log_run(client, experiment, "study", role="study", accuracy=0.3)
    log_run(client, experiment, "final", accuracy=0.2)
    log_run(client, experiment, "trial", role="trial", accuracy=0.9)
    log_run(client, experiment, "fold", role="fold", accuracy=0.9)
    log_run(client, experiment, "no model", digest="", accuracy=0.9)
    killed = Run(client, experiment, role="final", name="killed", tags={DIGEST_TAG: "d" * 64})
    killed.metrics({"accuracy": 0.9})
    killed.end("KILLED")
    assert ranking(client, experiment, "accuracy") == ["study", "final"]


def test_the_ranking_goes_on_over_pages(client: MlflowClient, experiment: str) -> None:
    values = [(37 * number) % (RANKED_A_PAGE + 3) for number in range(RANKED_A_PAGE + 3)]  # each once, in a mixed order
    for value in values:
        log_run(client, experiment, str(value), score=value)
    assert ranking(client, experiment, "score") == [str(value) for value in sorted(values, reverse=True)]


def test_bad_input_gets_a_sentence(client: MlflowClient, experiment: str) -> None:
    with pytest.raises(TrackingError, match=r"no experiment 'exprmnt 0'; there are: experiment \d"):
        ranking(client, "exprmnt 0", "accuracy")
    log_run(client, experiment, "no model", digest="", accuracy=0.9)
    with pytest.raises(RegistryError, match=rf"'{experiment}' has no finished run that holds a model; let"):
        ranking(client, experiment, "accuracy")
    log_run(client, experiment, "model", best_val_accuracy=0.9, mean_cv_accuracy=math.nan)
    with pytest.raises(RegistryError, match=r"logged 'best_val_acc'; there are: best_val_accuracy, mean_cv_accuracy$"):
        ranking(client, experiment, "best_val_acc")
    with pytest.raises(RegistryError, match=r"logged 'x` DESC'; there are: "):
        ranking(client, experiment, "x` DESC")
    with pytest.raises(RegistryError, match=r"has a finite value of 'mean_cv_accuracy'"):
        ranking(client, experiment, "mean_cv_accuracy")


def test_a_run_without_outputs_has_no_model(client: MlflowClient, experiment: str) -> None:
    log_run(client, experiment, "digest only", accuracy=0.9)
    (run,) = ranked_runs(client, experiment, "accuracy")
    assert model_of(run) is None


@pytest.mark.parametrize("metric", ["val_loss", "ERROR_rate", "training_time_s", "epoch_duration_s", "batch_ms_p95"])
def test_losses_errors_and_times_are_better_low(metric: str) -> None:
    assert direction(metric) == "min"

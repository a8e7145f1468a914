"""MLflow through the one door: stores that answer or not, runs and how they end, what arrives in them."""

import itertools
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from support import COLOURS, ColourNetwork, colour_baseline, colour_card, colour_pixels, free_port
from toolkit import tracking
from toolkit.bundle import DIGEST_TAG, Program, load_bundle, save_bundle
from toolkit.errors import TrackingError
from toolkit.tracking import MlflowClient, Run, code_version, connect, find_experiment, open_experiment

NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> MlflowClient:
    return connect(f"sqlite:///{tmp_path_factory.mktemp('tracking')}/mlflow.db")


@pytest.fixture(params=["database", "server"])
def store(request: pytest.FixtureRequest) -> MlflowClient:
    if request.param == "server":
        return connect(request.getfixturevalue("mlflow_server"))
    return request.getfixturevalue("database")


def start(client: MlflowClient, **more: object) -> Run:
    return Run(client, f"experiment {next(NUMBERS)}", **{"role": "final", "name": "a run", **more})


def curve(values: list[float]) -> Figure:
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot(values)
    return figure


# --- stores -------------------------------------------------------------------------------------


def test_the_default_store_is_in_the_working_directory_and_stays_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect()
    assert (tmp_path / "mlflow.db").is_file()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    shutil.copy(tmp_path / "mlflow.db", "mlflow.db")  # a first start is slow
    assert connect().tracking_uri == f"sqlite:///{tmp_path}/elsewhere/mlflow.db?timeout=60"


def test_the_variable_decides_and_an_argument_overrules_it(
    database: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database.tracking_uri)
    assert connect().tracking_uri == database.tracking_uri
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert connect(database.tracking_uri).tracking_uri == database.tracking_uri
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("uri", "reason", "advice"),
    [
        ("http://127.0.0.1:{port}", "connection refused", "start it with: mlflow server"),
        ("http://no-such-host.invalid", "unknown host", "start it with: mlflow server"),
        ("sqlite:///{here}/file/mlflow.db", "[Errno 17] File exists: '{here}/file'", "set MLFLOW_TRACKING_URI to "),
        ("sqlite:///{here}", "the database file cannot be opened", "set MLFLOW_TRACKING_URI to another store"),
        ("sqlite:///{here}/file", "the file is not a database", "set MLFLOW_TRACKING_URI to another store"),
    ],
    ids=["nobody listens", "unknown host", "no folder", "a folder", "no database"],
)
def test_a_store_that_does_not_answer_is_one_sentence(
    uri: str, reason: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("I am no database, however long I go on about it. " * 30)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    places = {"port": free_port(), "here": tmp_path}
    uri, reason = uri.format(**places), reason.format(**places)
    with pytest.raises(TrackingError) as caught:
        connect(uri)
    assert str(caught.value).startswith(f"MLflow at {uri} does not answer: {reason}; {advice}")


def test_mlflow_is_set_up_before_it_is_imported_and_the_users_own_choice_stays(tmp_path: Path) -> None:
    code = (
        "import os; os.environ['MLFLOW_HTTP_REQUEST_TIMEOUT'] = '77'; import toolkit.tracking;"
        "print(os.environ['MLFLOW_HTTP_REQUEST_TIMEOUT'], os.environ['MLFLOW_ALLOW_PICKLE_DESERIALIZATION'],"
        " os.environ['MLFLOW_DISABLE_TELEMETRY'])"
    )
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120)
    assert answer.stdout.split() == ["77", "false", "true"]


# --- experiments --------------------------------------------------------------------------------


def test_an_experiment_is_made_once_and_found_again(database: MlflowClient) -> None:
    with pytest.raises(TrackingError, match=r"^there is no experiment 'trainin'; there are: "):
        find_experiment(database, "trainin")
    made = open_experiment(database, "training")
    assert open_experiment(database, "training") == find_experiment(database, "training") == made
    with pytest.raises(TrackingError, match=r"^there is no experiment 'trainin'; there are: training, "):
        find_experiment(database, "trainin")


def test_a_deleted_experiment_is_not_written_to(database: MlflowClient) -> None:
    database.delete_experiment(open_experiment(database, "gone"))
    with pytest.raises(TrackingError, match=r"^experiment 'gone' was deleted; restore it or choose another"):
        Run(database, "gone", role="final", name="a run")
    with pytest.raises(TrackingError, match=r"^there is no experiment 'gone'"):
        find_experiment(database, "gone")


def test_an_experiment_behind_a_server_is_not_written_to_from_its_database(database: MlflowClient) -> None:
    database.create_experiment("proxied", artifact_location="mlflow-artifacts:/1")
    with pytest.raises(TrackingError, match=r"^experiment 'proxied' keeps its files behind an MLflow server: set "):
        open_experiment(database, "proxied")


def test_a_name_that_mlflow_refuses_is_one_sentence(database: MlflowClient) -> None:
    with pytest.raises(TrackingError, match=r"^cannot start a run in experiment '': Invalid experiment name") as caught:
        Run(database, "", role="final", name="a run")
    assert "\n" not in str(caught.value)


# --- how a run ends -----------------------------------------------------------------------------


class Odd(Exception):
    pass


@pytest.mark.parametrize(
    ("raised", "status", "failure"),
    [
        (None, "FINISHED", None),
        (KeyboardInterrupt(), "KILLED", None),
        (SystemExit(143), "KILLED", None),
        (TrackingError("the loss became nan"), "FAILED", "the loss became nan"),
        (Odd("first line\nsecond line"), "FAILED", "first line"),
        (Odd(), "FAILED", "Odd"),
        (Odd("x" * 20_000), "FAILED", "x" * 8000),
    ],
    ids=["finished", "ctrl-c", "sigterm", "error", "two lines", "no text", "long"],
)
def test_a_run_ends_with_the_status_that_fits(
    database: MlflowClient, raised: BaseException | None, status: str, failure: str | None
) -> None:
    def work() -> None:
        with run:
            run.metrics({"loss": 0.5})
            if raised is not None:
                raise raised

    run = start(database)
    assert database.get_run(run.id).info.status == "RUNNING"
    if raised is None:
        work()
    else:
        with pytest.raises(type(raised)) as caught:
            work()
        assert caught.value is raised
    logged = database.get_run(run.id)
    assert logged.info.status == status
    assert logged.data.tags.get("failure") == failure
    assert logged.data.metrics == {"loss": 0.5}  # what was measured before it ended is there


def test_a_run_says_what_it_is(store: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/some/where/train_cnn.py", "--epochs", "3"])
    with (
        start(store, role="study", tags={"seed": 7}) as study,
        Run(store, study.experiment, role="trial", name="trial 1", parent=study) as trial,
    ):
        pass
    tags = store.get_run(study.id).data.tags
    assert (tags["role"], tags["seed"], tags["mlflow.runName"]) == ("study", "7", "a run")
    assert (tags["mlflow.source.name"], tags["mlflow.source.git.commit"]) == ("train_cnn.py", code_version())
    assert tags["mlflow.user"]
    assert "mlflow.parentRunId" not in tags
    nested = store.get_run(trial.id)
    assert nested.data.tags["mlflow.parentRunId"] == study.id
    assert nested.info.experiment_id == study.experiment_id
    (found,) = store.search_runs([study.experiment_id], "tags.role = 'trial' and attributes.status = 'FINISHED'")
    assert found.info.run_id == trial.id


def test_a_run_knows_its_page(store: MlflowClient) -> None:
    with start(store) as run:
        if store.tracking_uri.startswith("http"):
            assert run.url == f"{store.tracking_uri}/#/experiments/{run.experiment_id}/runs/{run.id}"
        else:
            assert run.url is None


# --- what arrives -------------------------------------------------------------------------------


def test_metrics_are_buffered_and_all_arrive_with_their_steps(store: MlflowClient) -> None:
    with start(store) as run:
        run.metrics({"loss": 0.9}, step=1)
        assert store.get_run(run.id).data.metrics == {}
        run.flush()
        assert store.get_run(run.id).data.metrics == {"loss": 0.9}
        for step in range(2, 1251):  # more than one request holds
            run.metrics({"loss": 1 / step, "rate": step}, step)
    history = store.get_metric_history(run.id, "loss")
    assert [point.step for point in history] == list(range(1, 1251))
    assert [point.value for point in history] == pytest.approx([0.9, *(1 / step for step in range(2, 1251))])
    assert len(store.get_metric_history(run.id, "rate")) == 1249
    assert store.get_run(run.id).data.metrics == {"loss": pytest.approx(1 / 1250), "rate": 1250.0}


def test_a_metric_that_is_no_number_is_kept_as_one(database: MlflowClient) -> None:
    with start(database) as run:
        run.metrics({"loss": math.nan})
    assert math.isnan(database.get_run(run.id).data.metrics["loss"])


def test_metrics_that_could_not_be_sent_stay_buffered(database: MlflowClient) -> None:
    run = start(database)
    database.delete_run(run.id)
    run.metrics({"loss": 0.5}, step=3)
    with pytest.raises(TrackingError, match=r"^cannot log metrics: "):
        run.flush()
    database.restore_run(run.id)
    run.end("FINISHED")
    (point,) = database.get_metric_history(run.id, "loss")
    assert (point.value, point.step) == (0.5, 3)


def test_more_params_than_a_request_holds_and_longer_than_mlflow_allows(store: MlflowClient) -> None:
    values = {f"setting_{number}": number for number in range(230)} | {"long": "y" * 9000, "none": None}
    with start(store) as run:
        run.params(values)
    params = store.get_run(run.id).data.params
    assert len(params) == 232
    assert params["setting_229"] == "229"
    assert params["long"] == "y" * 6000
    assert params["none"] == "None"


def test_artifacts_lie_where_their_names_say(store: MlflowClient, tmp_path: Path) -> None:
    with start(store) as run:
        run.json("skipped.json", [{"path": "a", "reason": "ü"}])
        run.json("tables/deep/per_class.json", {"cat": 0.5})
        run.text("notes/readme.txt", "first\nsecond")
        run.figure("curve.png", curve([1, 2]))
        run.figure("a/b.png", curve([1, 2]))
        run.figure("v1.2/deep.er/c.png", curve([1, 2]))
    names = ("skipped.json", "tables/deep/per_class.json", "notes/readme.txt", "curve.png", "a/b.png")
    content = {name: Path(store.download_artifacts(run.id, name, str(tmp_path))) for name in names}
    assert json.loads(content["skipped.json"].read_text()) == [{"path": "a", "reason": "ü"}]
    assert json.loads(content["tables/deep/per_class.json"].read_text()) == {"cat": 0.5}
    assert content["notes/readme.txt"].read_text() == "first\nsecond"
    for name in ("curve.png", "a/b.png"):
        with Image.open(content[name]) as picture:
            assert picture.format == "PNG"
            assert picture.width > 100
    assert [item.path for item in store.list_artifacts(run.id, "v1.2/deep.er")] == ["v1.2/deep.er/c.png"]
    assert {item.path for item in store.list_artifacts(run.id)} == {
        "skipped.json", "tables", "notes", "curve.png", "a", "v1.2"
    }  # fmt: skip


def test_a_disk_that_refuses_is_one_sentence(database: MlflowClient, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    database.create_experiment("full", artifact_location=str(tmp_path / "file" / "artifacts"))
    run = Run(database, "full", role="final", name="a run")
    writers: dict[str, Callable[[str], None]] = {
        "a.json": lambda name: run.json(name, {}),
        "b.txt": lambda name: run.text(name, ""),
        "c.png": lambda name: run.figure(name, curve([1])),
    }
    for name, write in writers.items():
        with pytest.raises(TrackingError, match=rf"^cannot log {name}: .*Not a directory"):
            write(name)


def test_a_model_is_ready_when_it_is_complete(store: MlflowClient, tmp_path: Path) -> None:
    program = Program(ColourNetwork())
    with start(store) as run:
        model_id = run.new_model()
        assert store.get_logged_model(model_id).status == "PENDING"
        digest = save_bundle(
            tmp_path / "model", program, colour_card(), colour_baseline(program), run_id=run.id, model_id=model_id
        )
        run.model(tmp_path / "model", model_id, {DIGEST_TAG: digest})
    model = store.get_logged_model(model_id)
    assert (model.status, model.source_run_id, model.tags[DIGEST_TAG]) == ("READY", run.id, digest)
    logged = store.get_run(run.id)
    assert logged.data.tags[DIGEST_TAG] == digest
    assert [output.model_id for output in logged.outputs.model_outputs] == [model_id]
    folder = tracking.mlflow.artifacts.download_artifacts(
        artifact_uri=model.artifact_location, dst_path=str(tmp_path / "back"), tracking_uri=store.tracking_uri
    )
    batch = np.stack([colour_pixels(colour, 16, np.random.default_rng(0)) for colour in COLOURS])
    assert load_bundle(Path(folder), digest).predict(batch).argmax(axis=1).tolist() == [0, 1, 2]


# --- code and machine ---------------------------------------------------------------------------


def test_the_code_version_is_gits(tmp_path: Path) -> None:
    """In a repository of its own: a commit, and -dirty once a file was changed."""
    (tmp_path / "house" / "toolkit").mkdir(parents=True)
    for name in ("tracking.py", "errors.py", "__init__.py"):
        shutil.copy(Path(tracking.__file__).parent / name, tmp_path / "house" / "toolkit" / name)

    def git(*words: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        answer = subprocess.run(
            ["git", *identity, *words], check=True, capture_output=True, text=True, cwd=tmp_path / "house"
        )
        return answer.stdout.strip()

    def version() -> str:
        lines = (
            f"import sys; sys.path.insert(0, {str(tmp_path / 'house')!r})",
            "from toolkit.tracking import code_version",
            "print(code_version())",
            "open('toolkit/errors.py', 'a').write('# changed')",
            "print(code_version())",
        )
        answer = subprocess.run(
            [sys.executable, "-c", "\n".join(lines)], check=True, capture_output=True, text=True, cwd=tmp_path / "house"
        )
        return answer.stdout

    git("init", "--quiet")
    git("add", "toolkit")
    git("commit", "--quiet", "--message", "first")
    git("tag", "--annotate", "v9", "--message", "a tag is no version")
    commit = git("rev-parse", "HEAD")
    clean, dirty = version().split()
    assert re.fullmatch(r"[0-9a-f]{12,}", clean)
    assert commit.startswith(clean)
    assert dirty == f"{clean}-dirty"


def test_without_git_the_code_version_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert code_version() == "unknown"

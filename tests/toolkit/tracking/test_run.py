"""One MLflow run: how it ends, what arrives in it, and how it is resumed."""

import json
import math
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from support.colours import COLOURS, ColourNetwork, colour_baseline, colour_card, colour_pixels
from support.ctrl_c import ctrl_c_at
from support.mlflow_stores import start_run
from toolkit.bundle.files import DIGEST_TAG
from toolkit.bundle.program import Program, load_bundle, save_bundle
from toolkit.errors import TrackingError
from toolkit.tracking import connection
from toolkit.tracking.code_version import code_version
from toolkit.tracking.run import Run


def curve(values):
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot(values)
    return figure


# --- how a run ends ---------------------------------------------------------------------------------


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
def test_a_run_ends_with_the_status_that_fits(database, raised, status, failure):
    run = start_run(database)
    assert database.get_run(run.id).info.status == "RUNNING"
    with pytest.raises(type(raised)) if raised else nullcontext(), run:
        run.metrics({"loss": 0.5})
        if raised:
            raise raised
    logged = database.get_run(run.id)
    assert logged.info.status == status
    assert logged.data.tags.get("failure") == failure
    assert logged.data.metrics == {"loss": 0.5}  # what was measured before it ended is there


def test_ctrl_c_within_a_transaction_leaves_the_store_unlocked(database):
    """Otherwise no later write of this process gets through, and the run stays RUNNING for ever."""
    run = start_run(database)
    with pytest.raises(KeyboardInterrupt) as stopped, ctrl_c_at("INSERT"), run:
        run.params({"epochs": 1})
    assert database.get_run(run.id).info.status == "KILLED"
    assert database.get_run(run.id).data.params == {"epochs": "1"}
    del stopped  # its traceback would hold what the interrupt left open


def test_a_run_says_what_it_is(store, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/some/where/train_cnn.py", "--epochs", "3"])
    with (
        start_run(store, role="study", tags={"seed": 7}) as study,
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
    assert (nested.data.tags["role"], nested.info.status) == ("trial", "FINISHED")


def test_a_run_knows_its_page(store):
    with start_run(store) as run:
        if store.tracking_uri.startswith("http"):
            pages = f"{store.tracking_uri}/#/experiments/{run.experiment_id}/runs"
            assert run.url == f"{pages}/{run.id}?workflowType=machine_learning"
            assert run.table_url == f"{pages}?workflowType=machine_learning&viewStateShareKey=metrics"
        else:
            assert (run.url, run.table_url) == (None, None)


# --- what arrives -----------------------------------------------------------------------------------


def test_metrics_are_buffered_and_all_arrive_with_their_steps(store):
    with start_run(store) as run:
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


def test_metrics_that_could_not_be_sent_stay_buffered(database):
    run = start_run(database)
    database.delete_run(run.id)
    run.metrics({"loss": 0.5}, step=3)
    with pytest.raises(TrackingError, match=r"^cannot log metrics: "):
        run.flush()
    database.restore_run(run.id)
    run.end("FINISHED")
    (point,) = database.get_metric_history(run.id, "loss")
    assert (point.value, point.step) == (0.5, 3)


def test_a_data_set_reads_back_as_mlflows_own(store):
    with start_run(store) as run:
        for _ in range(2):  # a run that goes on says so again
            run.dataset("photos", "f" * 36, "/data/photos", profile={"images": 120, "classes": 3}, context="training")
        run.dataset("photos", "e" * 16, "/data/photos", profile={}, context="held out")
    inputs = {item.dataset.digest: item for item in store.get_run(run.id).inputs.dataset_inputs}
    assert set(inputs) == {"f" * 36, "e" * 16}
    trained = inputs["f" * 36]
    assert (trained.dataset.name, json.loads(trained.dataset.profile)) == ("photos", {"images": 120, "classes": 3})
    assert [(tag.key, tag.value) for tag in trained.tags] == [("mlflow.data.context", "training")]
    assert [tag.value for tag in inputs["e" * 16].tags] == ["held out"]
    source = connection.mlflow.data.get_source(trained.dataset)
    assert source.uri == "/data/photos"


def test_names_in_any_bytes_are_recorded(store):
    """A folder's name in Latin-1, as Python gives it."""
    path = "/data/caf\udce9"
    with start_run(store) as run:
        run.params({"data": path})
        run.tag(data=path)
        run.text("note.txt", f"{path}\nand more")
        run.dataset("caf\udce9", "f" * 16, path, profile={}, context="training")
    found = store.get_run(run.id)
    assert found.data.params["data"] == found.data.tags["data"] == "/data/caf\\xe9"
    (item,) = found.inputs.dataset_inputs
    assert item.dataset.name == "caf\\xe9"
    assert connection.mlflow.data.get_source(item.dataset).uri == "/data/caf\\xe9"
    with pytest.raises(
        TrackingError, match=r"^cannot start a run in experiment .*: 'utf-8' codec can't encode character '.udce9'"
    ):
        Run(store, "caf\udce9", role="final", name="a run")


def test_names_and_digests_longer_than_mlflow_allows_are_one_sentence(store):
    with pytest.raises(TrackingError, match=r"^cannot start a run in experiment 'x{501}': .*$"):
        Run(store, "x" * 501, role="final", name="a run")
    run = start_run(store)
    with pytest.raises(TrackingError, match=r"^cannot log the data set 'photos': .*'digest' exceeds .* 36 characters"):
        run.dataset("photos", "f" * 37, "photos", profile={}, context="training")


def test_many_and_long_params(store):
    values = {f"setting_{number}": number for number in range(230)} | {"long": "y" * 9000, "none": None}
    with start_run(store) as run:
        run.params(values)
    params = store.get_run(run.id).data.params
    assert len(params) == 232
    assert params["setting_229"] == "229"
    assert params["long"] == "y" * 6000
    assert params["none"] == "None"


def test_artifacts_lie_where_their_names_say(store, tmp_path):
    with start_run(store) as run:
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
        with Image.open(content[name]) as image:
            assert image.format == "PNG"
            assert image.width > 100
    assert [item.path for item in store.list_artifacts(run.id, "v1.2/deep.er")] == ["v1.2/deep.er/c.png"]
    assert {item.path for item in store.list_artifacts(run.id)} == {
        "skipped.json", "tables", "notes", "curve.png", "a", "v1.2"
    }  # fmt: skip


def test_a_disk_that_refuses_is_one_sentence(database, tmp_path):
    (tmp_path / "file").write_text("no folder")
    database.create_experiment("full", artifact_location=str(tmp_path / "file" / "artifacts"))
    run = Run(database, "full", role="final", name="a run")
    writers = {
        "a.json": lambda name: run.json(name, {}),
        "b.txt": lambda name: run.text(name, ""),
        "c.png": lambda name: run.figure(name, curve([1])),
    }
    for name, write in writers.items():
        with pytest.raises(TrackingError, match=rf"^cannot log {name}: .*Not a directory"):
            write(name)


def test_a_model_is_ready_when_it_is_complete(store, tmp_path):
    program = Program(ColourNetwork())
    with start_run(store) as run:
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
    folder = connection.mlflow.artifacts.download_artifacts(
        artifact_uri=model.artifact_location, dst_path=str(tmp_path / "back"), tracking_uri=store.tracking_uri
    )
    batch = np.stack([colour_pixels(colour, 16, np.random.default_rng(0)) for colour in COLOURS])
    assert load_bundle(Path(folder), digest).predict(batch).argmax(axis=1).tolist() == [0, 1, 2]


# --- a run that is resumed --------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED", "RUNNING"])
def test_a_run_goes_on_however_it_ended(store, status):
    first = start_run(store)
    first.metrics({"loss": 0.5}, step=1)
    first.flush()
    if status == "FAILED":
        first.tag(failure="the power went")
    if status != "RUNNING":
        first.end(status)
    with Run.reopen(store, first.id) as run:
        assert (run.id, run.experiment, run.experiment_id) == (first.id, first.experiment, first.experiment_id)
        assert store.get_run(run.id).info.status == "RUNNING"
        run.metrics({"loss": 0.25}, step=2)
    logged = store.get_run(run.id)
    assert logged.info.status == "FINISHED"
    assert "failure" not in logged.data.tags
    assert [(point.step, point.value) for point in store.get_metric_history(run.id, "loss")] == [(1, 0.5), (2, 0.25)]


def test_a_run_that_is_not_there_does_not_go_on(store):
    missing = "0" * 32
    with pytest.raises(TrackingError, match=rf"^cannot reopen run '{missing}': .*Run with id={missing} not found$"):
        Run.reopen(store, missing)
    with pytest.raises(TrackingError, match=r"^cannot reopen run '\.\./x': Invalid value .* for parameter 'run_id'"):
        Run.reopen(store, "../x")
    run = start_run(store)
    store.delete_run(run.id)
    with pytest.raises(TrackingError, match=rf"^cannot reopen run '{run.id}': it was deleted; restore it or "):
        Run.reopen(store, run.id)


def test_what_is_unsent_survives_json_and_goes_first(database):
    run = start_run(database)
    run.metrics({"a": 0.1 + 0.2, "b": math.nan}, step=1)
    run.metrics({"a": math.inf, "b": -math.inf}, step=2)
    kept = run.pending
    times = [entry[2] for entry in kept]
    assert [entry[:2] + entry[3:] for entry in kept] == [
        ("a", 0.1 + 0.2, 1), ("b", "nan", 1), ("a", "inf", 2), ("b", "-inf", 2)
    ]  # fmt: skip
    assert all(abs(at / 1000 - time.time()) < 60 for at in times)
    other = Run.reopen(database, run.id)
    other.metrics({"a": 3.0}, step=3)
    other.load_pending(json.loads(json.dumps(kept, allow_nan=False)))
    assert other.pending[:4] == kept
    assert [entry[0::3] for entry in other.pending[4:]] == [("a", 3)]
    assert other.try_flush()
    assert other.pending == []


def test_an_entry_that_is_sent_twice_is_in_the_store_once(store):
    values = [1 / 3, math.nan, math.inf, -math.inf, 0.0, 1e-300, 7.0]
    run = start_run(store)
    for step, value in enumerate(values):
        run.metrics({"loss": value}, step)
    entries = run.pending
    for part in (entries[:4], entries[2:6], entries + entries, entries):  # some are there and some are not
        again = Run.reopen(store, run.id)
        again.load_pending(part)
        assert again.try_flush()
    history = store.get_metric_history(run.id, "loss")
    assert [point.step for point in history] == list(range(len(values)))
    assert [point.timestamp for point in history] == [entry[2] for entry in entries]
    largest = sys.float_info.max  # what MLflow keeps of an infinity
    expected = [1 / 3, math.nan, largest, -largest, *values[4:]]
    assert [point.value for point in history] == pytest.approx(expected, rel=0, abs=0, nan_ok=True)


@pytest.mark.parametrize("entry", [("loss", "low", 1, 1), ("loss", 0.5, 1), ("loss", 0.5, None, 1), 5])
def test_an_entry_that_is_none_is_refused_in_one_sentence(database, entry):
    run = start_run(database)
    run.metrics({"loss": 0.5})
    with pytest.raises(TrackingError, match=r"^a kept metric must be a name, a value, .*, got ") as caught:
        run.load_pending([("loss", 0.5, 1, 1), entry])
    assert str(caught.value).endswith(f"got {entry}")
    assert len(run.pending) == 1

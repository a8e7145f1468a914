"""The subcommands: text, JSON, and errors of one line."""

import json
import socket

import pandas as pd
import pytest

from model_registry import SUBCOMMANDS, ModelRegistry
from support.scripts import error_line, run_script
from support.servers import free_port
from toolkit.errors import ToolkitError


def test_every_subcommand_has_text_and_json(registered, monkeypatch, capsys):
    def says(*words):
        registered.cli(monkeypatch, *words)
        return capsys.readouterr().out.splitlines()

    def gives(*words):
        registered.cli(monkeypatch, *words, "--json")
        return json.loads(capsys.readouterr().out)

    again = f"next: python model_registry.py --tracking-uri {registered.uri} --model-name '{registered.name}'"
    assert says("list") == [f"no version of {registered.name} is registered yet", f"{again} register"]
    assert gives("list") == []
    assert gives("history") == []
    first, second = registered.log(0.9), registered.log(0.8)
    search = ("register", "--experiment-name", registered.name)
    assert says(*search) == [
        f"v1 of {registered.name} registered from run {first} (mean_cv_accuracy 0.9)",
        f"{again} promote 1 Production",
    ]
    assert says(*search)[0] == f"v1 of {registered.name} was registered before, from run {first} (mean_cv_accuracy 0.9)"
    assert gives(*search, "--metric", "val_loss", "--mode", "max")["run_id"] == second
    assert says("promote", "1", "Production", "--reason", "first") == [
        f"v1 of {registered.name} moved from None to Production",
        registered.detectable_drops(1),
        "next: python serve_model.py",
    ]
    assert says("promote", "2", "staging") == [
        f"v2 of {registered.name} moved from None to Staging",
        f"{again} promote 2 Production",
    ]
    moved = f"v2 of {registered.name} moved from Staging to Production; v1 is Archived"
    assert says("promote", "2", "Production")[0] == moved
    assert says("promote", "2", "Production")[0] == f"v2 of {registered.name} was in Production already"
    assert [line.split()[:2] for line in says("list")[1:]] == [["v2", "Production"], ["v1", "Archived"]]
    assert [version["stage"] for version in gives("list")] == ["Production", "Archived"]
    shown = [line.split() for line in says("show", "Production")[:2]]
    assert shown == [["version", "v2", "of", registered.name], ["stage", "Production"]]
    assert says("verify", "1") == [f"v1 of {registered.name} is intact: digest {gives('verify', '1')['digest']}"]
    assert says("compare", "1", "2")[0].split() == ["v1", "v2"]
    rows = gives("compare", "1", "2")
    assert [row["version"] for row in rows] == [1, 2]
    assert (rows[0]["p_value"], rows[1]["p_value"], rows[1]["shared_images"]) == (None, 1.0, 300)
    assert says("rollback")[0] == f"v1 of {registered.name} is in Production again (rollback of v2)"
    moved = f"v1 of {registered.name} moved from Production to Archived; no version is in Production now"
    assert says("archive", "1")[0] == moved
    assert gives("promote", "1", "None")["stage"] == "None"
    entries = gives("history")
    assert [entry["to"] for entry in entries][-2:] == ["Archived", "None"]
    assert pd.Timestamp(entries[0]["time"]).tzinfo is not None
    assert len(says("history")) == len(entries) + 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), f"a subcommand is required: {SUBCOMMANDS}; see --help"),
        (("promote", "1"), "the following arguments are required: STAGE"),
        (("promote", "1", "Production"), "no model 'model-"),
        (("show", "x"), "'x' is neither the number of a version nor a stage (None, Staging, Production, Archived)"),
        (("compare",), "the following arguments are required: VERSIONS"),
        (("register", "--mode", "up"), "--mode must be one of max, min, got up"),
        (("register", "--run", "abc", "--metric", "loss"), "--run names the run; leave out --experiment-name, "),
        (("register", "--run", "abc"), "there is no run 'abc'; a training prints its id at the end"),
        (("register", "--experiment-name", "nowhere"), "there is no experiment 'nowhere'; there are: "),
    ],
)
def test_bad_arguments_are_one_sentence(registered, monkeypatch, words, sentence):
    with pytest.raises(ToolkitError) as caught:
        registered.cli(monkeypatch, *words)
    assert str(caught.value).startswith(sentence)


def test_an_unreachable_server_is_one_line():
    uri = f"http://127.0.0.1:{free_port()}"
    result = run_script("model_registry.py", "list", MLFLOW_TRACKING_URI=uri)
    assert error_line(result) == (
        f"model_registry.py: error: MLflow at {uri} does not answer: connection refused; start it with: mlflow server"
    )
    assert result.stderr.count("\n") == 1


def test_the_constructor_has_no_side_effects(tmp_path, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection"))
    uri = "http://127.0.0.1:9"
    assert repr(ModelRegistry(uri, "cats")) == f"ModelRegistry(tracking_uri={uri!r}, model_name='cats')"
    assert list(tmp_path.iterdir()) == []

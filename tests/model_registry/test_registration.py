"""Registration of versions: the best run, a chosen one, and one that several tools or processes register."""

import math
from datetime import UTC

import pytest

from model_registry import ModelRegistry
from toolkit.bundle.files import CARD, PROGRAM
from toolkit.errors import BundleError, RegistryError
from toolkit.registry import registration
from toolkit.tracking.run import Run


def test_a_version_says_where_it_comes_from(any_registered):
    run = any_registered.log(0.8)
    version = any_registered.get(any_registered.register_best_model(any_registered.name))
    logged = any_registered.client.get_run(run)
    assert version.digest == logged.data.tags["bundle_digest"]
    assert version.model_id == logged.outputs.model_outputs[0].model_id
    assert version.metrics == {"accuracy": 1.0, "mean_cv_accuracy": 0.8}
    assert (version.tags["experiment"], version.tags["selected_by"]) == (any_registered.name, "mean_cv_accuracy")
    assert version.created.tzinfo is UTC
    assert "- held out: 300 images, accuracy 1\n" in version.description
    assert "- measured: accuracy 1 (300 images)\n" in version.description
    assert run in version.description
    assert any_registered.client.get_model_version(any_registered.name, "1").status == "READY"


def test_a_training_run_is_registered_by_a_loss(registered):
    registered.log(0.8, role="final", metrics={"best_val_accuracy": 0.7, "val_loss": 0.2})
    low = registered.log(0.8, role="final", metrics={"best_val_accuracy": 0.6, "val_loss": 0.1})
    version = registered.register_best_model(registered.name, "val_loss")
    assert registered.get(version).run_id == low
    assert registered.register_best_model(registered.name, "val_loss", mode="max") == 2
    assert registered.register_best_model(registered.name, "best_val_accuracy") == 2


def test_a_run_with_a_broken_bundle_is_skipped(registered, caplog):
    good, altered, deleted = registered.log(0.7), registered.log(0.8), registered.log(0.9)
    registered.log(math.nan)
    registered.alter(altered, PROGRAM)
    (registered.files(deleted) / PROGRAM).unlink()
    version = registered.get(registered.register_best_model(registered.name))
    assert version.run_id == good
    messages = [record.getMessage() for record in caplog.records if record.name == "model_registry"]
    assert messages[0] == f"run {deleted} is skipped: the bundle has no data/model.pt2"
    assert messages[1].startswith(f"run {altered} is skipped: the bundle was altered: its digest is ")


def test_only_broken_bundles_create_no_version(registered):
    run = registered.log(0.8)
    registered.alter(run, CARD)
    with pytest.raises(RegistryError, match=rf"no run of experiment '{registered.name}' holds an intact model; 1 were"):
        registered.register_best_model(registered.name)
    with pytest.raises(BundleError, match=rf"^run {run} cannot be registered: the bundle was altered"):
        registered.register_run(run)
    assert registered.list_versions() == []


def test_a_chosen_run_is_registered(registered, monkeypatch, capsys):
    chosen, _ = registered.log(0.7), registered.log(0.9)
    registered.cli(monkeypatch, "register", "--run", chosen)
    assert capsys.readouterr().out.splitlines()[0] == f"v1 of {registered.name} registered from run {chosen}"
    version = registered.get(1)
    origin = version.run_id, version.tags["selected_by"], version.tags["experiment"]
    assert origin == (chosen, "by hand", registered.name)
    assert f"- chosen by: chosen by hand\n- run: study run colours, {chosen}" in version.description
    assert registered.register_run(chosen) == 1  # it is one already
    assert registered.register_best_model(registered.name) == 2
    registered.cli(monkeypatch, "list")
    assert "by hand" in capsys.readouterr().out.splitlines()[2]


def test_register_without_arguments_after_a_training(alone, log_colour_run, tmp_path, monkeypatch, capsys):
    run = log_colour_run(alone.client, "training", metrics={"best_val_accuracy": 0.7})
    alone.cli(monkeypatch, "register")
    first = f"v1 of {alone.name} registered from run {run} (best_val_accuracy 0.7)"
    assert capsys.readouterr().out.splitlines()[0] == first
    assert alone.load(1).version.run_id == run
    assert not (tmp_path / "mlflow.db").exists()


def test_concurrent_registrations_leave_one_version(registered, monkeypatch):
    """Another process registers it between this one's read and its write."""
    registered.log(0.8)
    other, create = ModelRegistry(registered.uri, registered.name), registration.create_version

    def late(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr(registration, "create_version", create)
            assert other.register_best_model(registered.name) == 1
        return create(*arguments)

    monkeypatch.setattr(registration, "create_version", late)
    assert registered.register_best_model(registered.name) == 1
    assert registered.stages() == {1: "None"}


def test_a_version_of_another_tool_is_listed_and_refused(registered):
    registered.client.create_registered_model(registered.name)
    registered.client.create_model_version(registered.name, "/somewhere/else")
    assert registered.stages() == {1: "None"}
    assert registered.history()["reason"].tolist() == ["registered by another tool"]
    with pytest.raises(BundleError, match=rf"v1 of {registered.name} cannot be used: "):
        registered.transition_model_stage(1, "Production")


def test_a_production_version_of_another_tool_is_adopted(any_registered, caplog):
    registered, run = any_registered, any_registered.log(0.8)
    assert registered.register_by_mlflow(run) == 1
    found = registered.get("Production")
    digest = registered.client.get_run(run).data.tags["bundle_digest"]
    assert (found.version, found.digest, "bundle_digest" in found.tags) == (1, digest, False)
    assert registered.verify(1).digest == digest
    assert registered.load("Production").bundle.digest == digest

    registered.promote(0.9, strength=4.0)
    assert "adopted: v1 had been registered by another tool and is intact" in caplog.text
    adopted = registered.get(1)
    assert adopted.tags["bundle_digest"] == adopted.digest == digest
    found = adopted.stage, adopted.metrics, adopted.tags["selected_by"]
    assert found == ("Archived", {"accuracy": 1}, "another tool")
    assert "- held out: 300 images, accuracy 1\n" in adopted.description
    assert registered.rollback().version == 1


def test_a_broken_version_of_another_tool_is_refused_with_advice(registered):
    run = registered.log(0.8)
    registered.register_by_mlflow(run)
    registered.alter(run, PROGRAM)
    for attempt in (
        lambda: registered.load("Production"),
        lambda: registered.transition_model_stage(1, "Staging"),
    ):
        with pytest.raises(BundleError, match=rf"was altered.*registered by: .* register --run {run}$"):
            attempt()
    with pytest.raises(BundleError, match=rf"^run {run} cannot be registered: the bundle was altered"):
        registered.register_run(run)
    with Run(registered.client, registered.name, role="final", name="without a digest") as foreign:
        pass
    registered.client.create_model_version(registered.name, str(registered.files(run)), run_id=foreign.id)
    message = r"^v2 of .* no digest was recorded .* another tool registered it, and no training"
    with pytest.raises(BundleError, match=message):
        registered.transition_model_stage(2, "Staging")
    assert "bundle_digest" not in registered.get(1).tags


def test_a_run_registered_by_another_tool_is_registered_once(registered):
    run, other = registered.log(0.8), registered.log(0.9)
    registered.client.create_registered_model(registered.name)
    registered.client.create_model_version(registered.name, str(registered.files(other)), run_id=run)
    with pytest.raises(BundleError, match=rf"registered by: python model_registry.py register --run {run}$"):
        registered.verify(1)
    assert registered.register_run(run) == 2  # which the message said
    assert registered.verify(2).run_id == run
    registered.register_by_mlflow(other)
    assert registered.register_best_model(registered.name) == 3
    assert registered.get(3).tags["selected_by"] == "another tool"

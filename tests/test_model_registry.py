"""The life of models on a real database and a real server, and every way to get it wrong."""

import itertools
import json
import logging
import math
import shutil
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import model_registry
from model_registry import HISTORY_COLUMNS, ModelRegistry, main
from support.colours import COLOURS, ColourNetwork, colour_baseline, colour_pixels
from support.scripts import error_line, run_script
from support.servers import free_port
from toolkit.bundle.files import BASELINE, CARD, PROGRAM
from toolkit.bundle.program import Program
from toolkit.errors import (
    BundleError,
    DataError,
    NotRegistered,
    PromotionRefused,
    RegistryError,
    SettingsError,
    ToolkitError,
)
from toolkit.registry import promotion_gate, registration
from toolkit.registry.stages import Stages
from toolkit.tracking.connection import MlflowException, connect
from toolkit.tracking.run import Run

NUMBERS = itertools.count()
Log = Callable[..., str]


class RegisteredModel:
    """A registry of its own model and its own experiment, in a store that tests share."""

    def __init__(self, uri, log):
        self.uri, self.name = uri, f"model-{next(NUMBERS)}"
        self.client = connect(uri)
        self.registry = ModelRegistry(uri, self.name)
        self._log = log

    def log(self, accuracy, **more):
        """Log a study with a bundle."""
        metrics = {"mean_cv_accuracy": accuracy, "val_loss": 1 - accuracy}
        return self._log(self.client, self.name, **{"role": "study", "metrics": metrics, **more})

    def register(self, accuracy, **more):
        self.log(accuracy, **more)
        return self.registry.register_best_model(self.name)

    def files(self, run_id):
        """Where the store keeps a run's bundle."""
        model_id = self.client.get_run(run_id).outputs.model_outputs[0].model_id
        return Path(self.client.get_logged_model(model_id).artifact_location)

    def stages(self):
        return {version.version: version.stage for version in self.registry.list_versions()}

    def cli(self, monkeypatch, *words):
        arguments = ["model_registry.py", "--tracking-uri", self.uri, "--model-name", self.name, *words]
        monkeypatch.setattr(sys, "argv", arguments)
        main()


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('registry')}/mlflow.db"


@pytest.fixture
def registered(database, log_colour_run):
    return RegisteredModel(database, log_colour_run)


@pytest.fixture(params=["database", "server"])
def any_registered(request, log_colour_run):
    return RegisteredModel(
        request.getfixturevalue("mlflow_server" if request.param == "server" else "database"), log_colour_run
    )


@pytest.fixture(autouse=True)
def no_handler_is_left():
    yield
    model_registry.log.handlers.clear()


def flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


# --- the life of a model ---------------------------------------------------------------------


def test_the_life_of_a_model(any_registered):
    registered, registry = any_registered, any_registered.registry
    run = registered.log(0.8)
    assert registry.register_best_model(registered.name) == 1
    assert registry.register_best_model(registered.name) == 1  # the same run is not registered twice
    first = registry.transition_model_stage(1, "production", reason="  first\n model ")
    assert (first.stage, first.aliases, first.run_id) == ("Production", ("production",), run)

    assert registered.register(0.9, strength=0.2) == 2
    assert registry.transition_model_stage("v2", "STAGING").stage == "Staging"
    assert registry.transition_model_stage("Staging", "Production").version == 2
    assert registered.stages() == {2: "Production", 1: "Archived"}

    generator = np.random.default_rng(3)
    images = np.stack([colour_pixels(colour, 16, generator) for colour in COLOURS])
    loaded = registry.load("Production")
    assert loaded.version == registry.get(2)
    assert loaded.bundle.predict(images).argmax(axis=1).tolist() == [0, 1, 2]
    assert loaded.bundle.predict(images).max() < 0.7 < registry.load(1).bundle.predict(images).min(axis=0).max() + 0.7

    back = registry.rollback("too unsure")
    assert (back.version, back.stage) == (1, "Production")
    table = registry.history()
    assert tuple(table.columns) == HISTORY_COLUMNS
    assert list(zip(table["version"], table["from"], table["to"], strict=True)) == [
        (1, "", "None"),
        (1, "None", "Production"),
        (2, "", "None"),
        (2, "None", "Staging"),
        (2, "Staging", "Production"),
        (1, "Production", "Archived"),
        (1, "Archived", "Production"),
        (2, "Production", "Archived"),
    ]
    assert table["reason"].tolist()[1] == "first model"
    assert table["reason"].tolist()[-2:] == ["rollback of v2: too unsure", "replaced by v1"]
    assert table["time"].is_monotonic_increasing
    assert set(table["user"]) != {""}


def test_a_version_says_where_it_comes_from(any_registered):
    run = any_registered.log(0.8)
    version = any_registered.registry.get(any_registered.registry.register_best_model(any_registered.name))
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
    version = registered.registry.register_best_model(registered.name, "val_loss")
    assert registered.registry.get(version).run_id == low
    assert registered.registry.register_best_model(registered.name, "val_loss", mode="max") == 2
    assert registered.registry.register_best_model(registered.name, "best_val_accuracy") == 2


def test_the_registry_works_with_another_store(tmp_path, log_colour_run):
    registered = RegisteredModel(f"sqlite:///{tmp_path / 'elsewhere.db'}", log_colour_run)
    assert registered.register(0.9) == 1
    assert registered.registry.load(1).version.run_id
    assert not (tmp_path / "mlflow.db").exists()


# --- choosing ---------------------------------------------------------------------------------


def test_a_run_with_a_broken_bundle_is_skipped(registered, caplog):
    good, altered, deleted = registered.log(0.7), registered.log(0.8), registered.log(0.9)
    registered.log(math.nan)
    flip_a_byte(registered.files(altered) / PROGRAM)
    (registered.files(deleted) / PROGRAM).unlink()
    version = registered.registry.get(registered.registry.register_best_model(registered.name))
    assert version.run_id == good
    messages = [record.getMessage() for record in caplog.records if record.name == "model_registry"]
    assert messages[0] == f"run {deleted} is skipped: the bundle has no data/model.pt2"
    assert messages[1].startswith(f"run {altered} is skipped: the bundle was altered: its digest is ")


def test_only_broken_bundles_create_no_version(registered):
    flip_a_byte(registered.files(registered.log(0.8)) / CARD)
    with pytest.raises(
        RegistryError, match=rf"no run of experiment '{registered.name}' holds an intact model; 1 were tried"
    ):
        registered.registry.register_best_model(registered.name)
    assert registered.registry.list_versions() == []


def test_a_chosen_run_is_registered(registered, monkeypatch, capsys):
    chosen, _ = registered.log(0.7), registered.log(0.9)
    registered.cli(monkeypatch, "register", "--run", chosen)
    assert capsys.readouterr().out.splitlines()[0] == f"v1 of {registered.name} registered from run {chosen}"
    version = registered.registry.get(1)
    assert (version.run_id, version.tags["selected_by"], version.tags["experiment"]) == (
        chosen,
        "by hand",
        registered.name,
    )
    assert f"- chosen by: chosen by hand\n- run: study run colours, {chosen}" in version.description
    assert registered.registry.register_run(chosen) == 1  # it is one already
    assert registered.registry.register_best_model(registered.name) == 2
    registered.cli(monkeypatch, "list")
    assert "by hand" in capsys.readouterr().out.splitlines()[2]


def test_a_chosen_run_is_verified(registered):
    run = registered.log(0.8)
    flip_a_byte(registered.files(run) / PROGRAM)
    with pytest.raises(BundleError, match=rf"^run {run} cannot be registered: the bundle was altered"):
        registered.registry.register_run(run)
    assert registered.registry.list_versions() == []


def test_register_without_arguments_after_a_training(tmp_path, log_colour_run, monkeypatch, capsys):
    registered = RegisteredModel(f"sqlite:///{tmp_path / 'own.db'}", log_colour_run)
    run = log_colour_run(registered.client, "training", metrics={"best_val_accuracy": 0.7})
    registered.cli(monkeypatch, "register")
    assert capsys.readouterr().out.splitlines()[0] == (
        f"v1 of {registered.name} registered from run {run} (best_val_accuracy 0.7)"
    )


# --- what was altered ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", [PROGRAM, CARD, BASELINE, "MLmodel"])
def test_an_altered_version_is_not_used(registered, name):
    run = registered.log(0.8)
    registered.registry.register_best_model(registered.name)
    flip_a_byte(registered.files(run) / name)
    for attempt in (
        lambda: registered.registry.transition_model_stage(1, "Production"),
        lambda: registered.registry.transition_model_stage(1, "Staging"),
        lambda: registered.registry.load(1),
        lambda: registered.registry.verify(1),
        lambda: registered.registry.compare_models([1]),
    ):
        with pytest.raises(BundleError, match=rf"v1 of {registered.name} cannot be used: the bundle was altered"):
            attempt()
    assert registered.stages() == {1: "None"}
    assert len(registered.registry.history()) == 1
    assert registered.registry.transition_model_stage(1, "Archived").stage == "Archived"


def test_a_rollback_skips_broken_versions(registered, caplog):
    for accuracy in (0.7, 0.8, 0.9):
        registered.registry.transition_model_stage(registered.register(accuracy), "Production")
    flip_a_byte(registered.files(registered.registry.get(2).run_id) / PROGRAM)
    assert registered.registry.rollback().version == 1
    assert "v2 is skipped: v2 of" in caplog.text
    with pytest.raises(RegistryError, match=r"nothing to roll back to: no intact version .* in Production before v1"):
        registered.registry.rollback()
    assert registered.stages() == {3: "Archived", 2: "Archived", 1: "Production"}


# --- moving -------------------------------------------------------------------------------------


def test_two_rollbacks_go_two_versions_back(registered):
    for accuracy in (0.7, 0.8, 0.9):
        registered.registry.transition_model_stage(registered.register(accuracy), "Production")
    assert [registered.registry.rollback().version, registered.registry.rollback().version] == [2, 1]


def test_a_version_already_in_the_stage_stays(registered):
    registered.registry.transition_model_stage(registered.register(0.8), "Production")
    before = len(registered.registry.history())
    assert registered.registry.transition_model_stage(1, "Production").stage == "Production"
    assert len(registered.registry.history()) == before


def test_a_repair_is_logged(registered, caplog):
    for accuracy in (0.7, 0.8):
        registered.registry.transition_model_stage(registered.register(accuracy), "Production")
    registered.client.set_model_version_tag(registered.name, "1", "stage", "Production")
    registered.registry.transition_model_stage(2, "Production")
    assert "repaired: v1 was left half-way and is in Archived now" in caplog.text
    assert registered.client.get_model_version(registered.name, "1").tags["stage"] == "Archived"


def test_a_version_of_another_tool_is_listed_and_refused(registered):
    registered.client.create_registered_model(registered.name)
    registered.client.create_model_version(registered.name, "/somewhere/else")
    assert registered.stages() == {1: "None"}
    assert registered.registry.history()["reason"].tolist() == ["registered by another tool"]
    with pytest.raises(BundleError, match=rf"v1 of {registered.name} cannot be used: "):
        registered.registry.transition_model_stage(1, "Production")


def by_mlflow(registered, run_id):
    """Register a run's model as MLflow's own pages do, and put the alias on it."""
    client, model_id = registered.client, registered.client.get_run(run_id).outputs.model_outputs[0].model_id
    with suppress(MlflowException):
        client.create_registered_model(registered.name)
    source = f"models:/{model_id}" if registered.uri.startswith("http") else f"runs:/{run_id}/model"
    version = client.create_model_version(registered.name, source, run_id=run_id, model_id=model_id)
    client.set_registered_model_alias(registered.name, "production", version.version)
    return int(version.version)


def test_a_production_version_of_another_tool_is_adopted(any_registered, caplog):
    registered, run = any_registered, any_registered.log(0.8)
    assert by_mlflow(registered, run) == 1
    found = registered.registry.get("Production")
    digest = registered.client.get_run(run).data.tags["bundle_digest"]
    assert (found.version, found.digest, "bundle_digest" in found.tags) == (1, digest, False)
    assert registered.registry.verify(1).digest == digest
    assert registered.registry.load("Production").bundle.digest == digest

    registered.registry.transition_model_stage(registered.register(0.9, strength=4.0), "Production")
    assert "adopted: v1 had been registered by another tool and is intact" in caplog.text
    adopted = registered.registry.get(1)
    assert adopted.tags["bundle_digest"] == adopted.digest == digest
    assert (adopted.stage, adopted.metrics, adopted.tags["selected_by"]) == (
        "Archived",
        {"accuracy": 1},
        "another tool",
    )
    assert "- held out: 300 images, accuracy 1\n" in adopted.description
    assert registered.registry.rollback().version == 1


def test_a_broken_version_of_another_tool_is_refused_with_advice(
    registered,
):
    run = registered.log(0.8)
    by_mlflow(registered, run)
    flip_a_byte(registered.files(run) / PROGRAM)
    for attempt in (
        lambda: registered.registry.load("Production"),
        lambda: registered.registry.transition_model_stage(1, "Staging"),
    ):
        with pytest.raises(BundleError, match=rf"was altered.*registered by: .* register --run {run}$"):
            attempt()
    with pytest.raises(BundleError, match=rf"^run {run} cannot be registered: the bundle was altered"):
        registered.registry.register_run(run)
    with Run(registered.client, registered.name, role="final", name="without a digest") as foreign:
        pass
    registered.client.create_model_version(registered.name, str(registered.files(run)), run_id=foreign.id)
    with pytest.raises(
        BundleError, match=r"^v2 of .* no digest was recorded .* another tool registered it, and no training"
    ):
        registered.registry.transition_model_stage(2, "Staging")
    assert "bundle_digest" not in registered.registry.get(1).tags


def test_a_run_registered_by_another_tool_is_registered_once(
    registered,
):
    run, other = registered.log(0.8), registered.log(0.9)
    registered.client.create_registered_model(registered.name)
    registered.client.create_model_version(registered.name, str(registered.files(other)), run_id=run)
    with pytest.raises(BundleError, match=rf"registered by: python model_registry.py register --run {run}$"):
        registered.registry.verify(1)
    assert registered.registry.register_run(run) == 2  # which the message said
    assert registered.registry.verify(2).run_id == run
    by_mlflow(registered, other)
    assert registered.registry.register_best_model(registered.name) == 3
    assert registered.registry.get(3).tags["selected_by"] == "another tool"


def test_contradicting_mlflow_stages_are_reported(registered, monkeypatch, capsys):
    def notes():
        registered.cli(monkeypatch, "list")
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]

    for accuracy in (0.7, 0.8):
        registered.register(accuracy)
    registered.registry.transition_model_stage(1, "Production")
    assert notes() == []
    assert registered.registry.contradiction(registered.registry.get(1)) == ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        registered.client.transition_model_version_stage(
            registered.name, "2", "Production", archive_existing_versions=True
        )
    assert notes() == [
        f"note: v{number} is in {stage}, though MLflow's own stage says {shown}; the alias counts, and the next move"
        " repairs it"
        for number, stage, shown in ((2, "None", "Production"), (1, "Production", "Archived"))
    ]
    assert registered.registry.contradiction(registered.registry.get(1)) == (
        "MLflow's own stage puts v2 into Production, and the alias 'production', which counts, is on v1; to change"
        " that: python model_registry.py promote 2 Production"
    )
    registered.registry.transition_model_stage(1, "Production")
    assert notes() == []
    assert registered.registry.contradiction(registered.registry.get(1)) == ""

    registered.client.delete_registered_model_alias(registered.name, "production")
    with pytest.raises(NotRegistered, match=r"though MLflow's own stage says v1; .* promote 1 Production sets"):
        registered.registry.get("Production")


# --- the gate -----------------------------------------------------------------------------------


def test_a_significantly_worse_version_is_refused(any_registered):
    registered, registry = any_registered, any_registered.registry
    registry.transition_model_stage(registered.register(0.8), "Production")
    registered.register(0.9, lean=13)  # 42 of 300 images are called red and are not
    before = registry.history()
    with pytest.raises(
        PromotionRefused, match=r"v2 may not replace v1: accuracy 0.86 \[.*\] against 1 \[.*it is signif"
    ):
        registry.transition_model_stage(2, "Production", reason="tuned")
    assert registry.history().equals(before)
    result = registry.check_promotion(2)
    assert result
    assert (result.paired.whole.lost, result.paired.whole.gained) == (42, 0)
    assert min(result.latency_ms) > 0

    with pytest.raises(SettingsError, match="a forced promotion needs a reason"):
        registry.transition_model_stage(2, "Production", force=True, reason=" ")
    assert registry.transition_model_stage(2, "Production", force=True, reason="v1 is gone").stage == "Production"
    last = registry.get(2).transitions[-1]
    assert (last.reason, last.gate) == ("v1 is gone", f"forced: {result}"[: len(last.gate)])
    assert registry.check_promotion(2) is None  # it is there
    assert registry.rollback().version == 1  # without a gate


def test_a_first_and_a_better_version_pass(registered):
    registered.register(0.8, lean=13)
    assert registered.registry.check_promotion(1) is None
    registered.registry.transition_model_stage(1, "Production")
    registered.registry.transition_model_stage(registered.register(0.9), "Production")
    gates = registered.registry.history()["gate"]
    assert gates[1] == "nothing to compare with"
    assert gates[3].startswith(
        "passed: accuracy 1 [0.987, 1] against 0.86 [0.816, 0.895] of v1 on the same 300 images, 4"
    )


def test_a_broken_champion_can_be_replaced(registered, caplog):
    run = registered.log(0.8)
    registered.registry.register_best_model(registered.name)
    registered.registry.transition_model_stage(1, "Production")
    registered.register(0.9, lean=13)
    flip_a_byte(registered.files(run) / PROGRAM)
    assert (
        registered.registry.transition_model_stage(2, "Production").transitions[-1].gate
        == "v1 could not be compared with"
    )
    assert f"it is compared with nothing, because v1 of {registered.name} cannot be used" in caplog.text


def test_promotion_on_the_users_images(registered, colour_folder):
    """Version 2 calls each image red, which is right for these; on all colours it is not."""
    registered.registry.transition_model_stage(registered.register(0.8), "Production")
    registered.register(0.9, lean=40)
    assert not registered.registry.check_promotion(2, data=colour_folder).passed
    for colour in ("blue", "green"):
        shutil.rmtree(colour_folder / colour)
    result = registered.registry.check_promotion(2, data=str(colour_folder))
    assert result
    assert result.passed
    assert result.paired.by_class.keys() == {"red"}
    assert result.paired.whole.images == 40
    table = registered.registry.compare_models([1, 2], data=colour_folder)
    assert table["images"].tolist() == [40, 40]
    assert table["accuracy"].tolist() == [1.0, 1.0]
    with pytest.raises(DataError, match=r"nowhere"):
        registered.registry.transition_model_stage(2, "Production", data="nowhere")
    assert registered.registry.transition_model_stage(2, "Production", data=colour_folder).stage == "Production"


def test_the_gate_compares_with_the_champion_at_the_move(registered, monkeypatch):
    """Another process promotes version 3 while version 2 is compared with version 1."""
    for accuracy, lean in ((0.7, 13), (0.8, 13), (0.9, 0)):
        registered.register(accuracy, lean=lean)
    registered.registry.transition_model_stage(1, "Production")
    other, calls, check_promotion = ModelRegistry(registered.uri, registered.name), [], promotion_gate.check_promotion

    def overtaken(challenger, champion):
        calls.append((challenger.version.version, champion.version.version))
        if len(calls) == 1:
            other.transition_model_stage(3, "Production")
        return check_promotion(challenger, champion)

    monkeypatch.setattr(promotion_gate, "check_promotion", overtaken)
    with pytest.raises(PromotionRefused, match="v2 may not replace v3"):
        registered.registry.transition_model_stage(2, "Production")
    assert calls == [(2, 1), (3, 1), (2, 3)]
    assert registered.stages() == {3: "Production", 2: "None", 1: "Archived"}


def test_a_concurrent_promotion_is_an_error(registered, monkeypatch):
    for accuracy in (0.8, 0.9):
        registered.register(accuracy)
    other, move = ModelRegistry(registered.uri, registered.name), Stages.move

    def overtaken(stages, version, *words, **more):
        move(stages, version, *words, **more)
        if version.version == 1:
            other.transition_model_stage(2, "Production")

    monkeypatch.setattr(Stages, "move", overtaken)
    with pytest.raises(RegistryError, match=r"another process .* v1 was put into Production and is in Archived now"):
        registered.registry.transition_model_stage(1, "Production")
    assert registered.stages() == {2: "Production", 1: "Archived"}


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
    assert registered.registry.register_best_model(registered.name) == 1
    assert registered.stages() == {1: "None"}


# --- reading ------------------------------------------------------------------------------------


def test_not_registered_differs_from_unknown(any_registered):
    registry = any_registered.registry
    for attempt in (
        lambda: registry.get("Production"),
        lambda: registry.get(1),
        lambda: registry.load("staging"),
        registry.rollback,
        lambda: registry.transition_model_stage(1, "Production"),
    ):
        with pytest.raises(NotRegistered, match=rf"no model '{any_registered.name}' is registered yet"):
            attempt()
    assert registry.list_versions() == []
    assert list(registry.history().columns) == list(HISTORY_COLUMNS)

    any_registered.register(0.8)
    with pytest.raises(
        NotRegistered, match=rf"no version of {any_registered.name} is in Production yet; there are: 1$"
    ):
        registry.get("production")
    with pytest.raises(RegistryError, match=rf"^{any_registered.name} has no version 12; there are: 1$"):
        registry.get(12)
    with pytest.raises(RegistryError, match=r"has no version 0; there are: 1$"):
        registry.get(0)
    with pytest.raises(
        RegistryError, match=r"'Prodction' is neither the number of a version nor a stage \(Production, "
    ):
        registry.get("Prodction")
    with pytest.raises(RegistryError, match="several versions may be in stage Archived; give the number of one"):
        registry.get("archived")
    with pytest.raises(RegistryError, match="there is no stage 'Live'; there are: "):
        registry.transition_model_stage(1, "Live")
    with pytest.raises(RegistryError, match=r"nothing to roll back to: no intact version of .* was in Production$"):
        registry.rollback()


def test_suggestions_begin_with_the_nearest_number(registered):
    registered.client.create_registered_model(registered.name)
    for _ in range(12):
        registered.client.create_model_version(registered.name, "/somewhere")
    with pytest.raises(RegistryError, match=r"has no version 112; there are: 12, 11, "):
        registered.registry.get(112)


def test_a_comparison_reads_the_bundles(registered):
    registered.register(0.8)
    registered.register(0.9, strength=-8.0)  # it sees the opposite of each colour
    table = registered.registry.compare_models(["v2", 1, 2])
    assert list(table.index) == [2, 1]
    assert table.loc[1, "accuracy"] == 1.0
    assert table.loc[1, "gained"] == 300 - round(300 * table.loc[2, "accuracy"])
    assert table.loc[1, "lost"] == 0
    assert table.loc[1, "p_value"] < 1e-30
    assert table["mean_cv_accuracy"].tolist() == [0.9, 0.8]
    with pytest.raises(RegistryError, match="name the versions to compare"):
        registered.registry.compare_models([])


def test_versions_are_compared_on_shared_images(registered, caplog):
    registered.register(0.7, lean=13, held_out=slice(200))
    registered.register(0.8, held_out=slice(100, 300))
    leaning = colour_baseline(Program(ColourNetwork(8.0, 13)))
    right = leaning.predicted == leaning.labels
    assert right[:200].mean() != right[100:200].mean()
    table = registered.registry.compare_models([1, 2])
    assert table["images"].tolist() == table["shared_images"].tolist() == [100, 100]
    assert table["accuracy"].tolist() == table["shared_accuracy"].tolist() == [right[100:200].mean(), 1.0]
    assert table["held_out_images"].tolist() == [200, 200]
    assert table["held_out_accuracy"].tolist() == [right[:200].mean(), 1.0]
    assert table.loc[2, "difference"] == pytest.approx(1 - table.loc[1, "accuracy"])
    assert table.loc[1, "recall_weighted"] == pytest.approx(table.loc[1, "accuracy"])  # the same, by definition
    assert registered.registry.plot_comparison([1, 2]).get_suptitle() == "v2 against v1 on 100 images"
    assert caplog.text == ""

    registered.register(0.9, held_out=slice(200, 300))
    apart = registered.registry.compare_models([1, 2, 3])
    assert apart["images"].tolist() == [200, 200, 100]
    assert "held_out_images" not in apart
    assert "v1 and v2 and v3 have no image in common that all were measured on" in caplog.text
    assert "--data FOLDER" in caplog.text


def test_a_cache_makes_the_store_unnecessary(registered, tmp_path):
    run = registered.log(0.8)
    registered.registry.register_best_model(registered.name)
    registered.registry.load(1, cache=tmp_path / "cache")
    flip_a_byte(registered.files(run) / PROGRAM)
    assert registered.registry.load(1, cache=tmp_path / "cache").version.version == 1


def test_names_and_reasons_are_validated(registered):
    with pytest.raises(SettingsError, match=r'a model name is letters, digits, spaces .* got "it\'s"'):
        ModelRegistry(model_name="it's")
    registered.register(0.8)
    with pytest.raises(SettingsError, match="a reason must be at most 1000 characters, got 1001"):
        registered.registry.transition_model_stage(1, "Staging", reason="x" * 1001)
    assert registered.stages() == {1: "None"}


# --- the command line ---------------------------------------------------------------------------


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
        registered.registry.detectable_drops(1),
        "next: python serve_model.py",
    ]
    assert says("promote", "2", "staging") == [
        f"v2 of {registered.name} moved from None to Staging",
        f"{again} promote 2 Production",
    ]
    assert says("promote", "2", "Production")[0] == (
        f"v2 of {registered.name} moved from Staging to Production; v1 is Archived"
    )
    assert says("promote", "2", "Production")[0] == f"v2 of {registered.name} was in Production already"
    assert [line.split()[:2] for line in says("list")] == [
        ["version", "stage"],
        ["v2", "Production"],
        ["v1", "Archived"],
    ]
    assert [version["stage"] for version in gives("list")] == ["Production", "Archived"]
    assert [line.split() for line in says("show", "Production")[:2]] == [
        ["version", "v2", "of", registered.name],
        ["stage", "Production"],
    ]
    assert says("verify", "1") == [f"v1 of {registered.name} is intact: digest {gives('verify', '1')['digest']}"]
    assert says("compare", "1", "2")[0].split() == ["v1", "v2"]
    rows = gives("compare", "1", "2")
    assert [row["version"] for row in rows] == [1, 2]
    assert (rows[0]["p_value"], rows[1]["p_value"], rows[1]["shared_images"]) == (None, 1.0, 300)
    assert says("rollback")[0] == f"v1 of {registered.name} is in Production again (rollback of v2)"
    assert says("archive", "1")[0] == (
        f"v1 of {registered.name} moved from Production to Archived; no version is in Production now"
    )
    assert gives("promote", "1", "None")["stage"] == "None"
    entries = gives("history")
    assert [entry["to"] for entry in entries][-2:] == ["Archived", "None"]
    assert pd.Timestamp(entries[0]["time"]).tzinfo is not None
    assert len(says("history")) == len(entries) + 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            (),
            "a subcommand is required: list, show, register, promote, compare, rollback, history, verify, archive; see",
        ),
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


def test_an_error_is_one_line(registered):
    registered.register(0.8)
    words = ("--model-name", registered.name, "promote", "7", "Production")
    result = run_script("model_registry.py", *words, MLFLOW_TRACKING_URI=registered.uri)
    assert error_line(result) == f"model_registry.py: error: {registered.name} has no version 7; there are: 1"
    assert result.stderr.count("\n") == 1


def test_an_unreachable_server_is_one_line():
    uri = f"http://127.0.0.1:{free_port()}"
    assert error_line(run_script("model_registry.py", "--tracking-uri", uri, "list", timeout=60)) == (
        f"model_registry.py: error: MLflow at {uri} does not answer: connection refused; start it with: mlflow server"
    )


def test_import_and_constructor_have_no_side_effects(tmp_path):
    Path("imports.py").write_text(
        "import logging, socket, sys\n"
        "def refuse(*_): raise AssertionError('a connection')\n"
        "socket.socket.connect = refuse\n"
        "handlers = list(logging.getLogger().handlers)\n"
        "from model_registry import ModelRegistry\n"
        "print(ModelRegistry('http://127.0.0.1:9', 'cats'))\n"
        "assert logging.getLogger().handlers == handlers\n"
    )
    result = run_script(str(tmp_path / "imports.py"))
    assert result.returncode == 0, result.stderr
    assert (result.stdout, result.stderr) == (
        "ModelRegistry(tracking_uri='http://127.0.0.1:9', model_name='cats')\n",
        "",
    )
    assert [path.name for path in tmp_path.iterdir()] == ["imports.py"]


def test_no_warning_about_stages(registered, recwarn):
    logging.captureWarnings(False)
    registered.registry.transition_model_stage(registered.register(0.8), "Production")
    assert [str(warning.message) for warning in recwarn if "stage" in str(warning.message)] == []

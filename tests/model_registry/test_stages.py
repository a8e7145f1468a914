"""Versions on their way through the stages: the life of a model, rollbacks, repairs, altered bundles."""

import logging
import warnings

import numpy as np
import pytest

from model_registry import HISTORY_COLUMNS
from support.colours import COLOURS, colour_pixels
from toolkit.bundle.files import BASELINE, CARD, PROGRAM
from toolkit.errors import BundleError, NotRegistered, RegistryError


def test_the_life_of_a_model(any_registered):
    registered = any_registered
    run = registered.log(0.8)
    assert registered.register_best_model(registered.name) == 1
    assert registered.register_best_model(registered.name) == 1  # the same run is not registered twice
    first = registered.transition_model_stage(1, "production", reason="  first\n model ")
    assert (first.stage, first.aliases, first.run_id) == ("Production", ("production",), run)

    assert registered.register(0.9, strength=0.2) == 2
    assert registered.transition_model_stage("v2", "STAGING").stage == "Staging"
    assert registered.transition_model_stage("Staging", "Production").version == 2
    assert registered.stages() == {2: "Production", 1: "Archived"}

    generator = np.random.default_rng(3)
    images = np.stack([colour_pixels(colour, 16, generator) for colour in COLOURS])
    loaded = registered.load("Production")
    assert loaded.version == registered.get(2)
    assert loaded.bundle.predict(images).argmax(axis=1).tolist() == [0, 1, 2]
    assert loaded.bundle.predict(images).max() < 0.7 < registered.load(1).bundle.predict(images).min(axis=0).max() + 0.7

    back = registered.rollback("too unsure")
    assert (back.version, back.stage) == (1, "Production")
    table = registered.history()
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


def test_an_altered_version_is_not_used(registered):
    run = registered.log(0.8)
    registered.register_best_model(registered.name)
    attempts = (
        lambda: registered.transition_model_stage(1, "Production"),
        lambda: registered.transition_model_stage(1, "Staging"),
        lambda: registered.load(1),
        lambda: registered.verify(1),
        lambda: registered.compare_models([1]),
    )
    for name in (PROGRAM, CARD, BASELINE, "MLmodel"):
        registered.alter(run, name)
        for attempt in attempts:
            with pytest.raises(BundleError, match=rf"v1 of {registered.name} cannot be used: the bundle was altered"):
                attempt()
        registered.alter(run, name)  # as it was
    assert registered.verify(1).stage == "None"
    registered.alter(run, PROGRAM)
    assert registered.stages() == {1: "None"}
    assert len(registered.history()) == 1
    assert registered.transition_model_stage(1, "Archived").stage == "Archived"


def test_each_rollback_goes_further_back_and_skips_broken_versions(registered, caplog):
    for accuracy in (0.6, 0.7, 0.8, 0.9):
        registered.promote(accuracy)
    registered.alter(registered.get(3).run_id, PROGRAM)
    assert registered.rollback().version == 2
    assert "v3 is skipped: v3 of" in caplog.text
    assert registered.rollback().version == 1
    with pytest.raises(RegistryError, match=r"nothing to roll back to: no intact version .* in Production before v1"):
        registered.rollback()
    assert registered.stages() == {4: "Archived", 3: "Archived", 2: "Archived", 1: "Production"}


def test_a_version_already_in_the_stage_stays(registered, recwarn):
    logging.captureWarnings(False)
    registered.promote(0.8)
    assert [str(warning.message) for warning in recwarn if "stage" in str(warning.message)] == []
    before = len(registered.history())
    assert registered.transition_model_stage(1, "Production").stage == "Production"
    assert len(registered.history()) == before


def test_a_repair_is_logged(registered, caplog):
    for accuracy in (0.7, 0.8):
        registered.promote(accuracy)
    registered.client.set_model_version_tag(registered.name, "1", "stage", "Production")
    registered.transition_model_stage(2, "Production")
    assert "repaired: v1 was left half-way and is in Archived now" in caplog.text
    assert registered.client.get_model_version(registered.name, "1").tags["stage"] == "Archived"


def test_contradicting_mlflow_stages_are_reported(registered, monkeypatch, capsys):
    def notes():
        registered.cli(monkeypatch, "list")
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]

    for accuracy in (0.7, 0.8):
        registered.register(accuracy)
    registered.transition_model_stage(1, "Production")
    assert notes() == []
    assert registered.contradiction(registered.get(1)) == ""
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
    assert registered.contradiction(registered.get(1)) == (
        "MLflow's own stage puts v2 into Production, and the alias 'production', which counts, is on v1; to change"
        " that: python model_registry.py promote 2 Production"
    )
    registered.transition_model_stage(1, "Production")
    assert notes() == []
    assert registered.contradiction(registered.get(1)) == ""

    registered.client.delete_registered_model_alias(registered.name, "production")
    with pytest.raises(NotRegistered, match=r"though MLflow's own stage says v1; .* promote 1 Production sets"):
        registered.get("Production")

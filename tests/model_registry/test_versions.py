"""Versions that are read, compared and loaded, and names that do not exist."""

import pytest

from model_registry import HISTORY_COLUMNS, ModelRegistry
from support.colours import ColourNetwork, colour_baseline
from toolkit.bundle.files import PROGRAM
from toolkit.bundle.program import Program
from toolkit.errors import NotRegistered, RegistryError, SettingsError


def test_not_registered_differs_from_unknown(any_registered):
    registered = any_registered
    for attempt in (
        lambda: registered.get("Production"),
        lambda: registered.get(1),
        lambda: registered.load("staging"),
        registered.rollback,
        lambda: registered.transition_model_stage(1, "Production"),
    ):
        with pytest.raises(NotRegistered, match=rf"no model '{registered.name}' is registered yet"):
            attempt()
    assert registered.list_versions() == []
    assert registered.newest() is None
    assert list(registered.history().columns) == list(HISTORY_COLUMNS)

    registered.register(0.8)
    with pytest.raises(NotRegistered, match=rf"no version of {registered.name} is in Production yet; there are: 1$"):
        registered.get("production")
    for which, message in {
        12: rf"^{registered.name} has no version 12; there are: 1$",
        0: r"has no version 0; there are: 1$",
        "Prodction": r"'Prodction' is neither the number of a version nor a stage \(Production, ",
        "archived": "several versions may be in stage Archived; give the number of one",
    }.items():
        with pytest.raises(RegistryError, match=message):
            registered.get(which)
    with pytest.raises(RegistryError, match="there is no stage 'Live'; there are: "):
        registered.transition_model_stage(1, "Live")
    with pytest.raises(RegistryError, match=r"nothing to roll back to: no intact version of .* was in Production$"):
        registered.rollback()


def test_the_newest_version_is_the_one_registered_last(any_registered):
    registered = any_registered
    for accuracy in (0.7, 0.8):
        registered.register(accuracy)
    registered.transition_model_stage(2, "Staging")
    registered.transition_model_stage(1, "Production")
    assert registered.newest() == registered.get(2)
    assert registered.newest().stage == "Staging"


def test_suggestions_begin_with_the_nearest_number(registered):
    registered.client.create_registered_model(registered.name)
    for _ in range(12):
        registered.client.create_model_version(registered.name, "/somewhere")
    with pytest.raises(RegistryError, match=r"has no version 112; there are: 12, 11, "):
        registered.get(112)


def test_a_comparison_reads_the_bundles(registered):
    registered.register(0.8)
    registered.register(0.9, strength=-8.0)  # it sees the opposite of each colour
    table = registered.compare_models(["v2", 1, 2])
    assert list(table.index) == [2, 1]
    assert table.loc[1, "accuracy"] == 1.0
    assert table.loc[1, "gained"] == 300 - round(300 * table.loc[2, "accuracy"])
    assert table.loc[1, "lost"] == 0
    assert table.loc[1, "p_value"] < 1e-30
    assert table["mean_cv_accuracy"].tolist() == [0.9, 0.8]
    with pytest.raises(RegistryError, match="name the versions to compare"):
        registered.compare_models([])


def test_versions_are_compared_on_shared_images(registered, caplog):
    registered.register(0.7, lean=13, held_out=slice(200))
    registered.register(0.8, held_out=slice(100, 300))
    leaning = colour_baseline(Program(ColourNetwork(8.0, 13)))
    right = leaning.predicted == leaning.labels
    assert right[:200].mean() != right[100:200].mean()
    table = registered.compare_models([1, 2])
    assert table["images"].tolist() == table["shared_images"].tolist() == [100, 100]
    assert table["accuracy"].tolist() == table["shared_accuracy"].tolist() == [right[100:200].mean(), 1.0]
    assert table["held_out_images"].tolist() == [200, 200]
    assert table["held_out_accuracy"].tolist() == [right[:200].mean(), 1.0]
    assert table.loc[2, "difference"] == pytest.approx(1 - table.loc[1, "accuracy"])
    assert table.loc[1, "recall_weighted"] == pytest.approx(table.loc[1, "accuracy"])  # the same, by definition
    assert registered.plot_comparison([1, 2]).get_suptitle() == "v2 against v1 on 100 images"
    assert caplog.text == ""

    registered.register(0.9, held_out=slice(200, 300))
    apart = registered.compare_models([1, 2, 3])
    assert apart["images"].tolist() == [200, 200, 100]
    assert "held_out_images" not in apart
    assert "v1 and v2 and v3 have no image in common that all were measured on" in caplog.text
    assert "--data FOLDER" in caplog.text


def test_a_cache_makes_the_store_unnecessary(registered, tmp_path):
    run = registered.log(0.8)
    registered.register_best_model(registered.name)
    registered.load(1, cache=tmp_path / "cache")
    registered.alter(run, PROGRAM)
    assert registered.load(1, cache=tmp_path / "cache").version.version == 1


def test_names_and_reasons_are_validated(registered):
    with pytest.raises(SettingsError, match=r'a model name is letters, digits, spaces .* got "it\'s"'):
        ModelRegistry(model_name="it's")
    registered.register(0.8)
    with pytest.raises(SettingsError, match="a reason must be at most 1000 characters, got 1001"):
        registered.transition_model_stage(1, "Staging", reason="x" * 1001)
    assert registered.stages() == {1: "None"}

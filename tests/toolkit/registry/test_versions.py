"""What is read from MLflow, also when other tools wrote it."""

import json
from datetime import UTC, datetime

import pytest
from mlflow.entities.model_registry import ModelVersion, ModelVersionTag

from support.servers import empty_store
from toolkit.errors import NotRegistered, RegistryError
from toolkit.registry import versions
from toolkit.registry.versions import STAGES, Transition, read_version, read_versions, stage_named
from toolkit.tracking.connection import connect

NINE = datetime(2026, 5, 1, 9, 0, 0, 42, tzinfo=UTC)


def entity(*aliases, **tags):
    return ModelVersion(
        "cats", 7, creation_timestamp=1_777_626_000_000, source="models:/m-12", current_stage="Staging",
        tags=[ModelVersionTag(key, value) for key, value in tags.items()], aliases=list(aliases),
    )  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
def test_stages_in_any_case(stage):
    assert {stage_named(text) for text in (stage, stage.lower(), stage.upper(), f" {stage} ")} == {stage}


def test_an_unknown_stage_is_refused():
    with pytest.raises(RegistryError, match=r"there is no stage 'Stagin'; there are: Staging, None"):
        stage_named("Stagin")


def test_transition_round_trip():
    entry = Transition(7, NINE, "Staging", "Production", "ann", 'why "so"', rollback=True, cancels="transition.x")
    assert Transition.from_tag(7, entry.key, entry.to_json()) == entry
    assert entry.key == "transition.2026-05-01T09:00:00.000042Z"


@pytest.mark.parametrize(
    ("aliases", "tags", "stage"),
    [
        ((), {}, "None"),
        ((), {"stage": "Archived"}, "Archived"),
        (("production",), {"stage": "Archived"}, "Production"),
        (("staging", "production"), {}, "Production"),
        (("champion",), {"stage": "None"}, "None"),
        ((), {"stage": "Production"}, "Archived"),  # what held an alias and lost it is out of service
        ((), {"stage": "on holiday"}, "None"),
    ],
)
def test_the_alias_decides_before_the_tag(aliases, tags, stage):
    assert read_version(entity(*aliases, **tags)).stage == stage


def test_tags_of_other_tools_are_ignored():
    good = Transition(7, NINE, "", "None", "ann", "registered")
    version = read_version(
        entity(
            metrics="[1, 2]",
            **{"transition.invalid": "{}", "transition.2026-05-01T09:00:00Z": "no JSON", good.key: good.to_json()},
        )
    )
    assert version.metrics == {}
    assert version.transitions == (good,)
    assert (version.digest, version.model_id, version.mlflow_stage) == ("", "m-12", "Staging")


def test_a_version_as_json():
    entry = Transition(7, NINE, "", "None")
    version = read_version(entity("production", metrics='{"accuracy": 0.5}', **{entry.key: entry.to_json()}))
    fields = json.loads(json.dumps(version.to_dict()))
    assert (fields["version"], fields["stage"], fields["metrics"]) == (7, "Production", {"accuracy": 0.5})
    assert fields["created"] == "2026-05-01T09:00:00+00:00"
    assert list(fields["tags"]) == ["metrics"]


def test_versions_are_read_in_pages_newest_first(tmp_path, monkeypatch):
    monkeypatch.setattr(versions, "VERSIONS_A_PAGE", 2)
    (tmp_path / "mlflow.db").write_bytes(empty_store())
    client = connect()
    client.create_registered_model("cats")
    for _ in range(5):
        client.create_model_version("cats", str(tmp_path))
    for alias, number in {"production": 4, "champion": 4, "staging": 1}.items():
        client.set_registered_model_alias("cats", alias, str(number))
    aliases = {found.version: found.aliases for found in read_versions(client, "cats")}
    assert list(aliases.items()) == [(5, ()), (4, ("champion", "production")), (3, ()), (2, ()), (1, ("staging",))]
    with pytest.raises(NotRegistered, match=r"no model 'cat' is registered yet; there are: cats$"):
        list(read_versions(client, "cat"))

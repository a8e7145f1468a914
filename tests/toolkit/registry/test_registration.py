"""The bundle of a version that another tool registered; tests/model_registry has how it is adopted."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from toolkit.bundle.files import DIGEST_TAG
from toolkit.registry.registration import recognised
from toolkit.registry.versions import Version
from toolkit.tracking.run import Run

FOREIGN = Version("cats", 1, "None", "", "", "", datetime(2026, 5, 1, tzinfo=UTC))


@pytest.fixture
def client(database):
    return database


def test_a_version_with_a_digest_needs_no_request(client):
    ours = replace(FOREIGN, digest="d" * 64, run_id="nowhere", model_id="m-nowhere")
    assert recognised(client, ours) is ours


def test_the_digest_of_the_model_comes_before_that_of_the_run(client):
    with Run(client, "training", role="final", name="one", tags={DIGEST_TAG: "a" * 64}) as run:
        model_id = run.new_model()
    client.set_logged_model_tags(model_id, {DIGEST_TAG: "b" * 64})
    by_model = recognised(client, replace(FOREIGN, model_id=model_id, run_id=run.id))
    assert (by_model.digest, by_model.model_id) == ("b" * 64, model_id)
    assert recognised(client, replace(FOREIGN, model_id="m-gone", run_id=run.id)).digest == "a" * 64
    assert recognised(client, replace(FOREIGN, run_id=run.id)).digest == "a" * 64


def test_deleted_and_foreign_models_have_no_digest(client):
    with Run(client, "training", role="final", name="foreign") as run:
        pass
    for version in (FOREIGN, replace(FOREIGN, run_id=run.id), replace(FOREIGN, run_id="e" * 32, model_id="m-gone")):
        assert recognised(client, version).digest == ""

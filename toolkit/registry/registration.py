"""Registration of a run's bundle as a model version, once for each run.

A version that another tool registered, such as MLflow's own pages or client, has no digest. The training that made
its bundle recorded one, on the run and on the logged model; a bundle that matches it is as good as one that
``register`` verified.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from typing import Any

from toolkit.bundle.files import DIGEST_TAG, Card, verify_bundle
from toolkit.errors import BundleError
from toolkit.registry.bundles import download, model_location, naming_version, version_location
from toolkit.registry.formatting import version_description
from toolkit.registry.run_selection import is_finite, model_of
from toolkit.registry.stages import whoami
from toolkit.registry.versions import (
    METRICS_TAG,
    MISSING_OR_INVALID,
    MODEL_TAG,
    STAGE_TAG,
    Transition,
    Version,
    numbered_version,
)
from toolkit.tracking.connection import (
    ANSWER_SECONDS,
    MlflowClient,
    MlflowException,
    experiment_page,
    mlflow_call,
    short_timeouts,
)

BY_HAND = "by hand"  # the run was chosen by its id
ANOTHER_TOOL = "another tool"


def register(client: MlflowClient, model: str, run: Any, metric: str | None, time: datetime) -> int:
    """The version of a run that has logged a bundle, created unless there is one.

    Without a metric, which the run was selected by, it was chosen by its id. ``BundleError``: the bundle is
    missing or altered.
    """
    for number in _versions_of(client, model, run, ours=False):
        with suppress(BundleError):  # another tool registered something else, which is left as it is
            adopt(client, numbered_version(client, model, number))
    if registered := _versions_of(client, model, run):
        return registered[0]
    created = create_version(client, model, run, metric, time)
    oldest = _versions_of(client, model, run)[0]
    if created != oldest:  # another process registered the run at the same moment
        with mlflow_call(f"take back version {created}", timeout=ANSWER_SECONDS):
            client.delete_model_version(model, str(created))
    return oldest


def create_version(client: MlflowClient, model: str, run: Any, metric: str | None, time: datetime) -> int:
    """Verify a run's bundle and create a version of it; returns the number."""
    model_id = model_of(run)
    if model_id is None:
        raise BundleError("it has the digest of a bundle, but no model")
    digest = run.data.tags[DIGEST_TAG]
    location = model_location(client, model_id)
    with download(client, location) as folder:
        card, baseline = verify_bundle(folder, digest)
    with mlflow_call("read the experiment", timeout=ANSWER_SECONDS):
        experiment = client.get_experiment(run.info.experiment_id).name
    page = experiment_page(client, run.info.experiment_id, f"runs/{run.info.run_id}")
    choice, selection, ranked = f"chosen {BY_HAND}", {"selected_by": BY_HAND}, {}
    if metric:
        value = run.data.metrics[metric]
        choice, ranked = f"the best {metric} in {experiment}, {value:.4g}", {metric: value}
        selection = {"selected_by": metric, "selected_value": repr(value)}
    registration = Transition(0, time, "", "None", whoami(), f"{choice}: run {run.info.run_id}")
    with suppress(MlflowException), short_timeouts():  # it exists already, or the next call reports the error
        client.create_registered_model(model)
    with mlflow_call("register the model", timeout=ANSWER_SECONDS):
        created = client.create_model_version(
            model,
            # A server resolves models:/ itself. With a database this process does, in MLflow's global store instead
            # of this one, so the resolved location is given.
            f"models:/{model_id}" if client.tracking_uri.startswith("http") else location,
            run_id=run.info.run_id,
            run_link=page,
            model_id=model_id,
            description=version_description(card, baseline, choice, _lineage(run, page)),
            tags={
                DIGEST_TAG: digest,
                MODEL_TAG: model_id,
                STAGE_TAG: "None",
                METRICS_TAG: _metrics_json(card, ranked),
                "experiment": experiment,
                **selection,
                registration.key: registration.to_json(),
            },
        )
    return int(created.version)


def recognised(client: MlflowClient, version: Version) -> Version:
    """A version with the model and the digest of its training, where it has none itself.

    Reads one or two records of MLflow, only for versions of other tools; writes nothing. The digest
    stays empty when no training of this project made the version.
    """
    if version.digest:
        return version
    model_id, digest = version.model_id, ""
    with mlflow_call(f"read the records of v{version.version}", timeout=ANSWER_SECONDS):
        if model_id:
            with _unless_missing():
                digest = client.get_logged_model(model_id).tags.get(DIGEST_TAG, "")
        if version.run_id and not digest:
            with _unless_missing():
                run = client.get_run(version.run_id)
                model_id, digest = model_id or model_of(run) or "", run.data.tags.get(DIGEST_TAG, "")
    return replace(version, model_id=model_id, digest=digest)


def adopt(client: MlflowClient, version: Version) -> bool:
    """Verify a version that another tool registered and set the tags that ``register`` sets; whether they were missing.

    ``BundleError``: the bundle is not intact; the message has the remedy.
    """
    if DIGEST_TAG in version.tags:
        return False
    version = recognised(client, version)
    with naming_version(version), download(client, version_location(client, version)) as folder:
        card, baseline = verify_bundle(folder, version.digest)
    tags = {
        METRICS_TAG: _metrics_json(card, {}),
        "selected_by": ANOTHER_TOOL,
        MODEL_TAG: version.model_id,
        DIGEST_TAG: version.digest,  # last: a version that has it has all
    }
    with mlflow_call(f"set the tags of v{version.version}", timeout=ANSWER_SECONDS):
        if not version.description:
            text = version_description(card, baseline, f"registered by {ANOTHER_TOOL}", version.run_id)
            client.update_model_version(version.name, str(version.version), text)
        for name, value in tags.items():
            client.set_model_version_tag(version.name, str(version.version), name, value)
    return True


@contextmanager
def _unless_missing() -> Iterator[None]:
    """Ignore a missing record."""
    try:
        yield
    except MlflowException as error:
        if error.error_code not in MISSING_OR_INVALID:
            raise


def _versions_of(client: MlflowClient, model: str, run: Any, *, ours: bool = True) -> list[int]:
    """The versions of a run, oldest first: those with a digest, or those of other tools."""
    with mlflow_call("find the versions of the run", timeout=ANSWER_SECONDS):
        found = client.search_model_versions(f"name = '{model}' AND run_id = '{run.info.run_id}'")
    return sorted(int(version.version) for version in found if (DIGEST_TAG in version.tags) == ours)


def _metrics_json(card: Card, ranked: dict[str, float]) -> str:
    """The finite metrics of a bundle's card, and the one that its run was selected by."""
    return json.dumps({name: item.value for name, item in card.metrics.items() if is_finite(item.value)} | ranked)


def _lineage(run: Any, page: str | None) -> str:
    """The run, with a link where there is a page, and the study or training that it belongs to."""
    itself = f"{run.data.tags.get('role', '')} run {run.info.run_name}, {run.info.run_id}".strip()
    parent = run.data.tags.get("mlflow.parentRunId")
    return (f"[{itself}]({page})" if page else itself) + (f", of run {parent}" if parent else "")

"""Registration of a run's bundle as a model version, once for each run."""

import json
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from toolkit.bundle.files import DIGEST_TAG, verify_bundle
from toolkit.errors import BundleError
from toolkit.registry.bundles import download, model_location
from toolkit.registry.external_versions import adopt
from toolkit.registry.formatting import version_description
from toolkit.registry.run_selection import is_finite, model_of
from toolkit.registry.stages import whoami
from toolkit.registry.versions import METRICS_TAG, MODEL_TAG, STAGE_TAG, Transition, numbered_version
from toolkit.tracking.connection import (
    ANSWER_SECONDS,
    AS_MODEL_TRAINING,
    MlflowClient,
    MlflowException,
    mlflow_call,
    short_timeouts,
)

BY_HAND = "by hand"  # the run was chosen by its id


def register(client: MlflowClient, model: str, run: Any, metric: str | None, time: datetime) -> int:
    """The version of a run, created unless there is one.

    Parameters
    ----------
    client
        Client of the store.
    model
        Name of the registered model.
    run
        MLflow's run, known to have logged a bundle.
    metric
        The metric that the run was selected by; None: it was chosen by its id.
    time
        Time of the registration, UTC.

    Raises
    ------
    BundleError
        The run's bundle is missing or altered.
    """
    for number in _versions_of(client, model, run, ours=False):
        with suppress(BundleError):  # another tool registered something else, which is left as it is
            adopt(client, numbered_version(client, model, number))
    if registered := _versions_of(client, model, run):
        return registered[0]
    created = create_version(client, model, run, metric, time)
    return _resolve_duplicate(client, model, created, _versions_of(client, model, run))


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
    page = _page_of(client, run)
    choice, selection, ranked = f"chosen {BY_HAND}", {"selected_by": BY_HAND}, {}
    if metric:
        value = run.data.metrics[metric]
        choice, ranked = f"the best {metric} in {experiment}, {value:.4g}", {metric: value}
        selection = {"selected_by": metric, "selected_value": repr(value)}
    registration = Transition(0, time, "", "None", whoami(), f"{choice}: run {run.info.run_id}")
    measured = {name: item.value for name, item in card.metrics.items() if is_finite(item.value)}
    with suppress(MlflowException), short_timeouts():  # it exists already, or the next call reports the error
        client.create_registered_model(model)
    with mlflow_call("register the model", timeout=ANSWER_SECONDS):
        created = client.create_model_version(
            model,
            # A server resolves models:/ itself. With a database this process does, in MLflow's global store instead
            # of this one, so the resolved location is given.
            f"models:/{model_id}" if client.tracking_uri.startswith("http") else location,
            run_id=run.info.run_id,
            run_link=page or None,
            model_id=model_id,
            description=version_description(card, baseline, choice, _lineage(run, page)),
            tags={
                DIGEST_TAG: digest,
                MODEL_TAG: model_id,
                STAGE_TAG: "None",
                METRICS_TAG: json.dumps(measured | ranked),
                "experiment": experiment,
                **selection,
                registration.key: registration.to_json(),
            },
        )
    return int(created.version)


def _versions_of(client: MlflowClient, model: str, run: Any, *, ours: bool = True) -> list[int]:
    """The versions of a run, oldest first: those with a digest, or those of other tools."""
    with mlflow_call("find the versions of the run", timeout=ANSWER_SECONDS):
        found = client.search_model_versions(f"name = '{model}' AND run_id = '{run.info.run_id}'")
    return sorted(int(version.version) for version in found if (DIGEST_TAG in version.tags) == ours)


def _resolve_duplicate(client: MlflowClient, model: str, created: int, registered: Sequence[int]) -> int:
    """Keep the oldest version of a run that several processes registered at the same moment."""
    if created != registered[0]:
        with mlflow_call(f"take back version {created}", timeout=ANSWER_SECONDS):
            client.delete_model_version(model, str(created))
    return registered[0]


def _lineage(run: Any, page: str) -> str:
    """The run, with a link where there is a page, and the study or training that it belongs to."""
    itself = f"{run.data.tags.get('role', '')} run {run.info.run_name}, {run.info.run_id}".strip()
    parent = run.data.tags.get("mlflow.parentRunId")
    return (f"[{itself}]({page})" if page else itself) + (f", of run {parent}" if parent else "")


def _page_of(client: MlflowClient, run: Any) -> str:
    """The address of a run's page; empty when the store is a database."""
    if not client.tracking_uri.startswith("http"):
        return ""
    page = f"{client.tracking_uri.rstrip('/')}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    return f"{page}?{AS_MODEL_TRAINING}"

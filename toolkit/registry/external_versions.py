"""Versions that another tool registered, such as MLflow's own pages or client.

Such a version has no digest of its own. The training that made its bundle recorded one, on the run and on
the logged model; what verifies against that is as good as what ``register`` makes.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from toolkit.bundle.files import DIGEST_TAG, verify_bundle
from toolkit.registry.bundles import download, naming_version, version_location
from toolkit.registry.formatting import version_description
from toolkit.registry.run_selection import is_finite, model_of
from toolkit.registry.versions import METRICS_TAG, MISSING, MODEL_TAG, Version
from toolkit.tracking.connection import ANSWER_SECONDS, MlflowClient, MlflowException, mlflow_call

ANOTHER_TOOL = "another tool"


def recognised(client: MlflowClient, version: Version) -> Version:
    """A version with the model and the digest that its training recorded, where it has none itself.

    Reads one or two records of MLflow, and only for what another tool registered; writes nothing. The
    digest stays empty when no training of this project made the version.
    """
    if version.digest:
        return version
    model_id, digest = version.model_id, ""
    with mlflow_call(f"read what was recorded of v{version.version}", timeout=ANSWER_SECONDS):
        if model_id:
            with _unless_missing():
                digest = client.get_logged_model(model_id).tags.get(DIGEST_TAG, "")
        if version.run_id and not digest:
            with _unless_missing():
                run = client.get_run(version.run_id)
                model_id, digest = model_id or model_of(run) or "", run.data.tags.get(DIGEST_TAG, "")
    return replace(version, model_id=model_id, digest=digest)


def adopt(client: MlflowClient, version: Version) -> bool:
    """Verify a version that another tool registered and record on it what ``register`` would have.

    Returns
    -------
    bool
        False when there was nothing to record.

    Raises
    ------
    BundleError
        It does not verify; the message says what helps.
    """
    if DIGEST_TAG in version.tags:
        return False
    version = recognised(client, version)
    with naming_version(version), download(client, version_location(client, version)) as folder:
        card, baseline = verify_bundle(folder, version.digest)
    tags = {
        METRICS_TAG: json.dumps({name: item.value for name, item in card.metrics.items() if is_finite(item.value)}),
        "selected_by": ANOTHER_TOOL,
        MODEL_TAG: version.model_id,
        DIGEST_TAG: version.digest,  # last: a version that has it has all
    }
    with mlflow_call(f"record what v{version.version} is", timeout=ANSWER_SECONDS):
        if not version.description:
            text = version_description(card, baseline, f"registered by {ANOTHER_TOOL}", version.run_id)
            client.update_model_version(version.name, str(version.version), text)
        for name, value in tags.items():
            client.set_model_version_tag(version.name, str(version.version), name, value)
    return True


@contextmanager
def _unless_missing() -> Iterator[None]:
    """Where nothing is there, nothing was recorded."""
    try:
        yield
    except MlflowException as error:
        if error.error_code not in (MISSING, "INVALID_PARAMETER_VALUE"):
            raise

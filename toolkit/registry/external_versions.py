"""Versions that another tool registered, such as MLflow's own pages or client.

Such a version has no digest. The training that made its bundle recorded one, on the run and on the logged
model; a bundle that matches it is as good as one that ``register`` verified.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from toolkit.bundle.files import DIGEST_TAG, verify_bundle
from toolkit.registry.bundles import download, naming_version, version_location
from toolkit.registry.formatting import version_description
from toolkit.registry.run_selection import is_finite, model_of
from toolkit.registry.versions import METRICS_TAG, MISSING_OR_INVALID, MODEL_TAG, Version
from toolkit.tracking.connection import ANSWER_SECONDS, MlflowClient, MlflowException, mlflow_call

ANOTHER_TOOL = "another tool"


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
    """Verify a version that another tool registered and set the tags that ``register`` sets.

    Returns
    -------
    bool
        Whether tags were set; False when they were there.

    Raises
    ------
    BundleError
        The bundle is not intact; the message has the remedy.
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

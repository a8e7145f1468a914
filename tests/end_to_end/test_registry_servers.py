"""The registry on a server with authentication: a user with write access, one with read access, unknown users."""

import numpy as np
import pytest
import requests

from model_registry import ModelRegistry
from support import MAX_WAIT_S
from support.colours import COLOURS, colour_pixels
from support.servers import MlflowServer
from toolkit.errors import TrackingError
from toolkit.tracking.connection import connect
from toolkit.tracking.run import Run

USER, PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
LOCKED_OUT = f"user or password is wrong or missing; set {USER} and {PASSWORD}"


def be(monkeypatch, user, password=None):
    """Go on as a user, with the right password unless another is given."""
    monkeypatch.setenv(USER, user)
    monkeypatch.setenv(PASSWORD, f"the password of {user}" if password is None else password)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Anna and Bert have accounts; what one of them makes, the other may read."""
    folder = tmp_path_factory.mktemp("guarded")
    rules = folder / "auth.ini"
    rules.write_text(
        "[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///auth.db\nauth_cache_ttl_seconds = 60\n"
    )
    guarded = MlflowServer(
        folder,
        *("--app-name", "basic-auth", "--artifacts-destination", str(folder / "artifacts")),
        MLFLOW_AUTH_CONFIG_PATH=str(rules),
        MLFLOW_AUTH_ADMIN_USERNAME="admin",
        MLFLOW_AUTH_ADMIN_PASSWORD="the password of admin",
        MLFLOW_FLASK_SERVER_SECRET_KEY="a secret",
    )
    try:
        guarded.start()
        for user in ("anna", "bert"):
            account = {"username": user, "password": f"the password of {user}"}
            admin, url = ("admin", "the password of admin"), f"{guarded.url}/api/2.0/mlflow/users/create"
            requests.post(url, json=account, auth=admin, timeout=MAX_WAIT_S).raise_for_status()
        yield guarded.url
    finally:
        guarded.kill()


@pytest.fixture(scope="module")
def annas(server, tmp_path_factory, log_colour_run):
    """Anna has version 1 in Production, and registered version 2."""
    folder = tmp_path_factory.mktemp("annas")
    with pytest.MonkeyPatch.context() as patch:
        be(patch, "anna")
        client, registry = connect(server), ModelRegistry(server)
        for accuracy in (0.8, 0.9):
            metrics = {"mean_cv_accuracy": accuracy}
            log_colour_run(client, "hyperopt_tuning", role="study", metrics=metrics, folder=folder)
            version = registry.register_best_model()
            if version == 1:
                registry.transition_model_stage(version, "Production", reason="the first")
    return server


def test_the_life_of_a_model_on_a_guarded_server(annas, monkeypatch):
    be(monkeypatch, "anna")
    registry = ModelRegistry(annas)
    assert registry.transition_model_stage(2, "Production").stage == "Production"
    images = np.stack([colour_pixels(colour, 16, np.random.default_rng(0)) for colour in COLOURS])
    assert registry.load("Production").bundle.predict(images).argmax(axis=1).tolist() == [0, 1, 2]
    assert registry.rollback("only a test").version == 1
    table = registry.history()
    assert set(table["user"]) == {"anna"}
    assert table["version"].tolist() == [1, 1, 2, 2, 1, 1, 2]
    assert table["to"].tolist() == ["None", "Production", "None", "Production", "Archived", "Production", "Archived"]


def test_a_user_with_read_access_changes_nothing(annas, monkeypatch, log_colour_run):
    be(monkeypatch, "bert")
    registry = ModelRegistry(annas)
    before = registry.list_versions()
    assert [version.version for version in before] == [2, 1]
    assert registry.compare_models([1, 2])["accuracy"].tolist() == [1.0, 1.0]
    assert registry.load("Production").version.version == 1
    assert registry.register_best_model() == 2  # which it is already
    for number, stage in ((2, "Production"), (2, "Staging"), (1, "Archived")):
        with pytest.raises(TrackingError, match=r"^cannot [^:]+: no permission$"):
            registry.transition_model_stage(number, stage)
    with pytest.raises(TrackingError, match=r"^cannot start a run in experiment 'hyperopt_tuning': no permission$"):
        log_colour_run(connect(annas), "hyperopt_tuning")
    log_colour_run(connect(annas), "berts")
    with pytest.raises(TrackingError, match=r"^cannot register the model: no permission$"):
        registry.register_best_model("berts")
    be(monkeypatch, "anna")
    assert ModelRegistry(annas).list_versions() == before


@pytest.mark.parametrize(
    ("user", "password"), [("", ""), ("anna", ""), ("anna", "a wrong one"), ("unknown", "a password")]
)
def test_an_unknown_user_is_refused(server, monkeypatch, user, password):
    be(monkeypatch, user, password)
    with pytest.raises(TrackingError) as caught:
        connect(server)
    assert str(caught.value) == f"MLflow at {server} cannot be used: {LOCKED_OUT}"


def test_a_removed_user_is_refused(annas, monkeypatch, capsys):
    be(monkeypatch, "anna")
    registry = ModelRegistry(annas)
    registry.list_versions()
    run = Run(connect(annas), "training", role="final", name="a run")
    be(monkeypatch, "anna", "a wrong one")
    with pytest.raises(TrackingError) as caught:
        registry.list_versions()
    assert str(caught.value) == f"cannot read the model 'image-classifier': {LOCKED_OUT}"
    run.metrics({"loss": 0.5})
    assert not run.try_flush()
    with pytest.raises(TrackingError) as caught:
        run.text("notes.txt", "unseen")
    assert str(caught.value) == f"cannot log notes.txt: {LOCKED_OUT}"
    assert capsys.readouterr().out.splitlines() == [
        f"MLflow refuses the metrics: {LOCKED_OUT}; training goes on, they are kept and will be sent later"
    ]
    be(monkeypatch, "anna")
    run.end("FINISHED")
    assert connect(annas).get_run(run.id).data.metrics == {"loss": 0.5}

"""Models that change while the service runs, and keys."""

import base64
import hmac
import json
import sqlite3

import numpy as np

from serve_model import ServeSettings
from support.colours import COLOURS, colour_image
from support.running_service import RED, SPOILED, problem, serving, wait_until, windows_of
from toolkit.bundle.files import DIGEST_TAG
from toolkit.tracking.connection import connect


def test_nan_is_never_a_class(registered, tmp_path):
    registered.promote("nan_for_red")
    with serving(registered, tmp_path) as served:
        assert served.predict().json()["predicted_class"] == "red"
        problem(served.predict(SPOILED), 500, "non-finite-output")
        results = served.client.post("/predict/batch", files=[("files", SPOILED), ("files", RED)]).json()["results"]
        assert [one.get("error", {}).get("type") for one in results] == ["/docs#problem-non-finite-output", None]
        metrics = served.client.get("/metrics").json()
        assert metrics["non_finite"] == {"1": 2}
        assert metrics["predictions"] == {"1": {"red": 2}}
        wait_until(lambda: windows_of(served)["short"]["non_finite"] == 2)
        for _ in range(100):
            served.predict(SPOILED)
        raised = wait_until(lambda: served.predict(SPOILED) and served.client.get("/alerts").json())
        assert served.client.get("/alerts", params={"limit": 1}).json() == raised[:1]
        assert set(raised[0]["sources"]) == {"upload"}  # as the client calls its files
        assert "non_finite" in json.dumps(raised)
        assert served.client.get("/health").status_code == 200
        assert served.client.get("/metrics", headers={"Accept": "text/plain"}).status_code == 200
        with sqlite3.connect(served.store, isolation_level=None) as database:
            database.execute("BEGIN IMMEDIATE")  # the store takes nothing, and what comes is more than may wait
            served.monitor.log_predictions(np.tile([1.0, 0.0, 0.0], (12_000, 1)))
            assert served.predict().json()["predicted_class"] == "red"
            assert served.monitor.writer_stats()["dropped"] > 0
            database.execute("ROLLBACK")
        database.close()


def test_a_model_that_another_tool_promoted_is_served(registered, tmp_path):
    client = connect(registered.uri)
    (run,) = client.search_runs([client.get_experiment_by_name("plain").experiment_id])
    client.create_registered_model(registered.name)
    client.create_model_version(registered.name, f"runs:/{run.info.run_id}/model", run_id=run.info.run_id)
    client.set_registered_model_alias(registered.name, "production", "1")
    with serving(registered, tmp_path, model_cache_dir=tmp_path / "copies") as served:
        assert served.predict().json()["predicted_class"] == "red"
        digest = run.data.tags[DIGEST_TAG]
        assert served.client.get("/model-info").json()["digest"] == digest
        assert (tmp_path / "copies" / registered.name / "Production" / digest).is_dir()
        assert served.client.get("/health").json()["registry"]["contradiction"] == (
            "MLflow's own stage puts v1 into None, and the alias 'production', which counts, into Production; to repair"
            " that: python model_registry.py promote 1 Production"
        )
        registered.registry.transition_model_stage(1, "Production")
        assert served.client.post("/admin/reload").json()["outcome"] == "unchanged"
        assert served.client.get("/health").json()["registry"]["contradiction"] is None


def test_a_confirmed_large_drop_of_accuracy_rolls_back(registered, tmp_path, receiver):
    registered.promote("plain")
    bad = registered.promote("unsure")
    more = {"on_immediate": "rollback", "alert_webhook": receiver.url, "webhook_secret": "hush"}
    with serving(registered, tmp_path, **more) as served:
        get = served.client.get
        assert get("/model-info").json()["version"] == bad
        for number in range(120):
            answer = served.predict(colour_image(COLOURS[number % 3], number)).json()
            if answer["model"]["version"] != bad:
                break
            wrong = COLOURS[(COLOURS.index(answer["predicted_class"]) + 1) % 3]
            found = {"prediction_id": answer["prediction_id"], "label": wrong, "source": "audit"}
            assert served.client.post("/feedback", json=found).status_code == 200
        wait_until(lambda: get("/model-info").json()["version"] != bad)
        [reason] = [text for text in registered.registry.history()["reason"] if "by itself: " in str(text)]
        assert "by itself: ACCURACY 100 -> 0 % since " in reason
        assert "Next:" not in reason
        served.predict()
        wait_until(lambda: not [alert for alert in get("/alerts").json() if alert["cleared_at"] is None])
        wait_until(lambda: any(b'"immediate"' in body for _, _, body in receiver.requests))
        text = get("/metrics/prometheus").text
        assert 'serve_alert_notifications_total{notifier="webhook",state="failed"} 0.0' in text
        assert 'serve_alerts_active{level="immediate"}' in text
    for _, headers, body in receiver.requests:
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        signature = base64.b64encode(hmac.digest(b"hush", signed, "sha256")).decode()
        assert headers["webhook-signature"] == f"v1,{signature}"


def test_keys_of_predictions_and_administration(registered, tmp_path):
    registered.promote("plain")
    with serving(registered, tmp_path, predict_key="open", admin_key="sesame") as served:
        post = served.client.post
        guarded = dict.fromkeys(("/predict", "/predict/batch", "/feedback"), ("open", "sesame"))
        guarded["/admin/reload"] = ("sesame", "open")
        for path, (right, wrong) in guarded.items():
            answer = post(path)
            problem(answer, 401, "key-missing")
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
            problem(post(path, headers={"X-API-Key": wrong}), 403, "key-wrong")
            problem(post(path, headers={"Authorization": f"Bearer {wrong}"}), 403, "key-wrong")
            for headers in ({"X-API-Key": right}, {"Authorization": f"Bearer {right}"}):
                assert post(path, headers=headers).status_code not in (401, 403)
        assert post("/predict", content=RED, headers={"X-API-Key": "open"}).json()["predicted_class"] == "red"
        assert post("/admin/reload", headers={"Authorization": "Bearer sesame"}).json()["outcome"] == "unchanged"
        for path in ("/livez", "/readyz", "/health", "/metrics", "/alerts", "/drift", "/model-info", "/openapi.json"):
            assert served.client.get(path).status_code == 200


def test_with_only_a_predict_key_administration_is_closed():
    guarded = ServeSettings(predict_key="open").protected_paths()
    assert guarded["/predict"] == "open"
    assert len(guarded["/admin/reload"]) >= 32
    assert guarded["/admin/reload"] != ServeSettings(predict_key="open").protected_paths()["/admin/reload"]
    assert set(ServeSettings(admin_key="sesame").protected_paths()) == {"/admin/reload"}
    assert ServeSettings().protected_paths() == {}

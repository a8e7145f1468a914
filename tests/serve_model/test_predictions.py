"""Predictions and feedback over HTTP, from the request to the monitor's store."""

import base64
import json
import sqlite3
from collections import Counter

import numpy as np
import pytest

from monitoring import ModelMonitor
from support.colours import COLOURS, colour_image, encode
from support.running_service import BLUE, GREEN, MEMBERS, RED, RegisteredModel, problem, serving, wait_until, windows_of
from toolkit.images.decoding import load_image


def test_each_way_to_send_an_image_gives_the_same_answer(served):
    bundle = served.registered.registry.load("Production").bundle
    for colour, image in (("red", RED), ("green", GREEN), ("blue", encode(load_image(BLUE, 200).pixels, "JPEG"))):
        wanted = bundle.predict(load_image(image, bundle.card.image_size).pixels[None])[0]
        text = base64.b64encode(image).decode()
        answers = [
            served.client.post("/predict", files={"file": ("../../etc/passwd", image, "text/html")}),
            served.client.post("/predict", content=image, headers={"Content-Type": "image/anything"}),
            served.client.post("/predict", content=image),
            served.client.post("/predict", content=iter([image[:99], image[99:]])),  # chunked, without a length
            served.client.post("/predict", json={"image": text}),
        ]
        for answer in answers:
            assert answer.status_code == 200, answer.text
            found = answer.json()
            assert set(found) == {
                "prediction_id", "predicted_class", "confidence", "top_k", "model", "timings_ms"
            }  # fmt: skip
            ranked = {one["label"]: one["probability"] for one in found["top_k"]}
            np.testing.assert_allclose([ranked[name] for name in COLOURS], wanted, rtol=0, atol=1e-6)
            assert (found["predicted_class"], found["confidence"]) == (colour, found["top_k"][0]["probability"])
            assert found["model"] == {"name": served.registered.name, "version": 1, "stage": "Production"}
            assert set(found["timings_ms"]) == {"decode", "queue", "infer", "total"}
        assert len({answer.json()["prediction_id"] for answer in answers}) == len(answers)


def test_top_k_is_the_number_of_classes(served):
    full = served.predict(top_k=3).json()["top_k"]
    assert [one["probability"] for one in full] == sorted((one["probability"] for one in full), reverse=True)
    for count in (1, 2, 3):
        assert served.predict(top_k=count).json()["top_k"] == full[:count]
    for wrong in (0, -1, 4, 10**40, "many", "1.5", ""):
        document = problem(served.predict(top_k=wrong), 422, "invalid-parameter")
        assert "top_k" in document["detail"]
    problem(served.predict(topk=1), 422, "invalid-parameter")


def test_images_of_a_batch_fail_alone(served):
    errors = lambda: Counter(served.client.get("/metrics").json()["errors"])  # noqa: E731
    images, before = [RED, b"this is no image", GREEN, encode(np.zeros((1001, 1000, 3), np.uint8))], errors()
    answer = served.client.post("/predict/batch", files=[("files", image) for image in images], params={"top_k": 1})
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert [one["index"] for one in results] == [0, 1, 2, 3]
    assert [one.get("prediction", {}).get("predicted_class") for one in results] == ["red", None, "green", None]
    assert [one.get("error", {}).get("status") for one in results] == [None, 400, None, 413]
    assert all(len(one["prediction"]["top_k"]) == 1 for one in results if "prediction" in one)
    assert results[1]["error"]["request_id"] == answer.headers["X-Request-ID"]
    assert set(results[1]["error"]) == MEMBERS
    assert errors() - before == {"undecodable-image": 1, "image-too-large": 1}


def test_a_batch_has_a_limit(served):
    answer = served.client.post("/predict/batch", files=[("files", RED)] * 5)
    assert "at most 4 files" in problem(answer, 422, "invalid-parameter")["detail"]
    problem(served.client.post("/predict/batch", files={"file": RED}), 422, "invalid-parameter")
    problem(served.client.post("/predict/batch", content=RED), 415, "unsupported-media-type")


def test_responses_are_valid_utf_8_whatever_the_file_name(served):
    """Latin-1 and an escape sequence in a file's name; half a character, which JSON can write, in a text."""
    begin = b'--B\r\nContent-Disposition: form-data; name="files"; filename='
    body = begin + b'"caf\xe9\x1b[31m.png"\r\n\r\n' + RED + b"\r\n" + begin + b'"\xed\xa0\x80"\r\n\r\nno\r\n--B--\r\n'
    form = {"Content-Type": "multipart/form-data; boundary=B"}
    answer = served.client.post("/predict/batch", content=body, headers=form)
    one, other = json.loads(answer.content.decode("utf-8"))["results"]
    assert (one["prediction"]["predicted_class"], other["error"]["status"]) == ("red", 400)
    name = one["prediction"]["prediction_id"].encode()
    for found in (
        b'"%s", "label": "\\ud800"' % name,
        b'"\\ud800", "label": "red"',
        b'"%s", "label": "a\\n\\u001b"' % name,
    ):
        body = b'{"prediction_id": ' + found + b"}"
        answer = served.client.post("/feedback", content=body, headers={"Content-Type": "application/json"})
        assert json.loads(answer.content.decode("utf-8"))["status"] == answer.status_code == 422
    assert len(served.client.post("/predict/batch", files=[("files", RED)] * 4).json()["results"]) == 4


def test_each_prediction_is_logged_with_its_statistics(uri, tmp_path):
    registered = RegisteredModel(uri)
    registered.promote("unsure")
    images = [colour_image(COLOURS[seed % 3], seed, size=30 + seed) for seed in range(12)]
    with serving(registered, tmp_path) as served:
        answers = [
            served.client.post("/predict", files={"file": (f"{n}\u202e.jpg", image)}, params={"top_k": 3}).json()
            for n, image in enumerate(images[:-1])
        ]
        answers.append(served.client.post("/predict", content=images[-1], params={"top_k": 3}).json())
        problem(served.predict(b"broken"), 400, "undecodable-image")
        windows = wait_until(lambda: (now := windows_of(served))["short"]["n"] == 12 and now)
        assert windows["long"]["model_version"] == "1"
    with ModelMonitor(served.store) as monitor:
        metrics = monitor.calculate_metrics("long")
        names = monitor.sources([answer["prediction_id"] for answer in answers])
    assert [names.get(answer["prediction_id"]) for answer in answers] == [rf"{n}\u202e.jpg" for n in range(11)] + [None]
    assert (metrics["n"], metrics["reference_n"]) == (12, 300)
    assert metrics["mean_confidence"] == pytest.approx(np.mean([answer["confidence"] for answer in answers]), abs=2e-3)
    with sqlite3.connect(served.store) as database:
        rows = database.execute(
            "select probabilities, statistic_values, latency_ms from predictions order by sequence"
        ).fetchall()
        [names] = [json.loads(text) for (text,) in database.execute("select statistics from models")]
    database.close()
    for row, answer, image in zip(rows, answers, images, strict=True):
        ranked = {one["label"]: one["probability"] for one in answer["top_k"]}
        np.testing.assert_allclose(np.frombuffer(row[0], np.float16), [ranked[name] for name in COLOURS], atol=1e-3)
        stored = dict(zip(names, np.frombuffer(row[1], np.float32).tolist(), strict=True))
        assert stored == pytest.approx(load_image(image, 16).statistics(), rel=1e-4)
        assert row[2] == pytest.approx(answer["timings_ms"]["total"])


def test_a_label_may_be_corrected(served):
    name = served.predict().json()["prediction_id"]
    for label in ("red", "red", "blue"):
        answer = served.client.post("/feedback", json={"prediction_id": name, "label": label})
        assert (answer.status_code, answer.json()) == (200, {"recorded": 1})
    with sqlite3.connect(served.store) as database:
        found = database.execute("select count(*) from labels").fetchone()
    database.close()
    assert found[0] >= 2


def test_labels_of_a_list_fail_alone(served):
    names = [served.predict(image).json()["prediction_id"] for image in (RED, GREEN)]
    found = [
        {"prediction_id": names[0], "label": "red"},
        {"prediction_id": "no-such-id", "label": "red"},
        {"prediction_id": names[1], "label": "purple"},
        {"prediction_id": names[1], "label": "green", "source": "audit"},
    ]
    answer = served.client.post("/feedback", json=found).json()
    assert answer["recorded"] == 2
    assert [(one["index"], one["error"]["status"]) for one in answer["errors"]] == [(1, 404), (2, 422)]


def test_wrong_labels_are_problems(served):
    name = served.predict().json()["prediction_id"]
    post = served.client.post
    problem(post("/feedback", json={"prediction_id": "missing", "label": "red"}), 404, "unknown-prediction")
    other = name[:-1] + ("0" if name[-1] != "0" else "1")
    problem(post("/feedback", json={"prediction_id": other, "label": "red"}), 404, "unknown-prediction")
    document = problem(post("/feedback", json={"prediction_id": name, "label": "puce"}), 422, "unknown-label")
    assert "puce" not in json.dumps(document)
    problem(post("/feedback", json={"prediction_id": name, "lable": "red"}), 422, "invalid-parameter")
    problem(post("/feedback", json=[]), 422, "invalid-parameter")
    problem(post("/feedback", json=[{"prediction_id": name, "label": "red"}] * 1001), 422, "invalid-parameter")
    problem(post("/feedback"), 422, "invalid-parameter")
    for odd in (b"{", b"[" * 200_000, b'{"a":' * 100_000, b"\xff", b"9" * 10_000):
        problem(post("/feedback", content=odd, headers={"Content-Type": "application/json"}), 400, "malformed-body")
    for odd in ("\\ud800", "\\u0000", "' or 1=1 --"):
        text = f'{{"prediction_id": "{odd}", "label": "{odd}"}}'
        answer = post("/feedback", content=text, headers={"Content-Type": "application/json"})
        assert answer.status_code in (404, 422), answer.text

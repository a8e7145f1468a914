"""The Open Inference Protocol, MLflow's and Prometheus' routes, by their published descriptions and clients."""

import asyncio
import json
from dataclasses import replace
from importlib.metadata import version

import mlflow.deployments
import numpy as np
import pytest
from fastapi import Request
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.utils.proto_json_utils import dump_input_data
from prometheus_client.parser import text_string_to_metric_families

from support.colours import COLOURS, colour_card, encode
from support.infer_requests import BLUE, GREEN, INFER, MAX_BATCH, MEMBERS, PIXELS, RED, in_base64, infer, outputs
from toolkit.serving.problems import MEDIA_TYPE
from toolkit.serving.routes import inference_protocols
from toolkit.serving.routes.inference_protocols import EXTENSION, MAX_ATTEMPTS, PREDICT_PATHS
from toolkit.serving.schemas import InferRequest

# What the published description of the protocol (open_inference_rest.yaml, version 2.0) says of objects:
# member to type, those that are required first, then those that are not.
STRING, INTEGER, ANY = str, int, object
METADATA_TENSOR = ({"name": STRING, "datatype": STRING, "shape": [INTEGER]}, {})
TENSOR = ({"name": STRING, "shape": [INTEGER], "datatype": STRING, "data": [ANY]}, {"parameters": dict})
OBJECTS = {
    "metadata_server_response": ({"name": STRING, "version": STRING, "extensions": [STRING]}, {}),
    "metadata_model_response": (
        {"name": STRING, "platform": STRING},
        {"versions": [STRING], "inputs": [METADATA_TENSOR], "outputs": [METADATA_TENSOR]},
    ),
    "inference_response": (
        {"model_name": STRING, "outputs": [TENSOR]},
        {"model_version": STRING, "id": STRING, "parameters": dict},
    ),
}


def assert_is(value, wanted):
    """The value has the described members and no others."""
    if isinstance(wanted, list):
        assert isinstance(value, list)
        for one in value:
            assert_is(one, wanted[0])
    elif isinstance(wanted, tuple):
        required, optional = wanted
        assert set(required) <= set(value) <= set(required) | set(optional)
        for name, one in value.items():
            assert_is(one, (required | optional)[name])
    else:
        assert isinstance(value, wanted)
        assert wanted is ANY or type(value) is not bool


def problem(answer, status, slug):
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, MEDIA_TYPE), answer.text
    document = answer.json()
    assert set(document) - {"errors"} == MEMBERS
    assert document["type"] == f"/docs#problem-{slug}"
    assert document["error"] == document["detail"]
    return document["detail"]


# The Open Inference Protocol: metadata


def test_server_metadata(client):
    for path in ("/v2", "/v2/"):
        answer = client.get(path)
        assert_is(answer.json(), OBJECTS["metadata_server_response"])
        extensions = [EXTENSION, "binary_tensor_data"]
        assert answer.json() == {"name": client.app.title, "version": client.app.version, "extensions": extensions}
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"live": True, "ready": True}


def test_model_metadata(client):
    for path in ("/v2/models/colours", "/v2/models/colours/versions/1"):
        found = client.get(path).json()
        assert_is(found, OBJECTS["metadata_model_response"])
        assert (found["name"], found["versions"]) == ("colours", ["1"])
        assert found["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 16, 16, 3]}]
        assert [(one["name"], one["datatype"], one["shape"]) for one in found["outputs"]] == [
            ("probabilities", "FP32", [-1, 3]), ("label", "BYTES", [-1]), ("prediction_id", "BYTES", [-1])
        ]  # fmt: skip
        assert client.get(f"{path}/ready").json() == {"name": "colours", "ready": True}


@pytest.mark.parametrize("place", ["shapes", "Colours", "colours/versions/2", "colours/versions/01", "..%2Fcolours",
                                   "%00", "colours/versions/Production", "shapes/versions/1"])  # fmt: skip
def test_another_model_or_version_is_not_found(client, place):
    detail = "what is served here is colours, version 1"
    for rest in ("", "/ready"):
        answer = client.get(f"/v2/models/{place}{rest}")
        if "%2F" not in place:  # else another address, which is none
            assert problem(answer, 404, "not-found") == detail
        assert answer.status_code == 404
    assert client.post(f"/v2/models/{place}/infer", json=infer(PIXELS)).status_code == 404


# The Open Inference Protocol: inference


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("place", ["colours", "colours/versions/1"])
def test_pixels_get_the_probabilities_of_the_bundle(client, wanted, place, flat):
    body = infer(PIXELS.ravel() if flat else PIXELS, PIXELS.shape)
    answer = client.post(f"/v2/models/{place}/infer", json=body)
    assert_is(answer.json(), OBJECTS["inference_response"])
    found = outputs(answer)
    assert [(name, one["datatype"], one["shape"]) for name, one in found.items()] == [
        ("probabilities", "FP32", [3, 3]), ("label", "BYTES", [3]), ("prediction_id", "BYTES", [3])
    ]  # fmt: skip
    np.testing.assert_allclose(np.reshape(found["probabilities"]["data"], (3, 3)), wanted(PIXELS), atol=0.01)
    assert found["label"]["data"] == ["red", "blue", "green"]
    assert {key: value for key, value in answer.json().items() if key != "outputs"} == {
        "model_name": "colours", "model_version": "1"
    }  # fmt: skip


@pytest.mark.parametrize("nested", [False, True])
def test_encoded_images_get_the_same_as_from_predict(client, wanted, nested):
    texts = [in_base64(RED), "data:image/png;base64," + in_base64(BLUE)]
    body = infer([[text] for text in texts], [2, 1], "BYTES") if nested else infer(texts, [2], "BYTES")
    found = outputs(client.post(INFER, json=body))
    np.testing.assert_allclose(np.reshape(found["probabilities"]["data"], (2, 3)), wanted([RED, BLUE]), atol=0.01)
    assert found["label"]["data"] == ["red", "blue"]
    direct = client.post("/predict", files={"file": BLUE}, params={"top_k": 3}).json()["top_k"]
    ranked = dict(zip(COLOURS, found["probabilities"]["data"][3:], strict=True))
    assert ranked == pytest.approx({one["label"]: one["probability"] for one in direct}, abs=0.01)


def test_prediction_ids_are_valid_for_feedback(client):
    found = outputs(client.post(INFER, json=infer(PIXELS)))
    ids = found["prediction_id"]["data"]
    assert len(set(ids)) == 3
    labels = [{"prediction_id": name, "label": "red"} for name in ids]
    assert client.post("/feedback", json=labels).json() == {"recorded": 3}


def test_only_requested_outputs_are_returned(client):
    for names in (["label"], ["prediction_id", "probabilities"], ["label", "label"]):
        asked = [{"name": name, "parameters": {"binary_data": False}} for name in names]
        answer = client.post(INFER, json=infer(PIXELS, outputs=asked))
        assert [one["name"] for one in answer.json()["outputs"]] == names
    for default in (None, []):
        assert len(outputs(client.post(INFER, json=infer(PIXELS.astype(float), outputs=default)))) == 3


@pytest.mark.parametrize("name", ["42", "", "x" * 256, "é\u2028\U0001f600"])
def test_the_id_is_returned_and_parameters_are_not(client, name):
    answer = client.post(INFER, json=infer(PIXELS[:1], id=name, parameters={"priority": 1}))
    assert answer.json()["id"] == name
    assert "parameters" not in answer.text


def test_the_declared_type_of_the_body_does_not_matter(client):
    body = json.dumps(infer(PIXELS)).encode()
    for content_type in ("application/json; charset=utf-8", "application/x-www-form-urlencoded"):
        assert client.post(INFER, content=body, headers={"Content-Type": content_type}).status_code == 200


TEXT = in_base64(RED)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "inputs: Field required"),
        (infer(PIXELS) | {"input": 1}, "has a field or parameter that is not known here"),
        ({"inputs": []}, "inputs"),
        ({"inputs": infer(PIXELS[:1])["inputs"] * 2}, "inputs: List should have at most 1 item"),
        ({"inputs": [infer(PIXELS)["inputs"][0] | {"name": "input0"}]}, "inputs.0.name: Input should be 'images'"),
        (infer(PIXELS, datatype="FP32"), "inputs.0.datatype"),
        (infer(PIXELS, id=42), "id"),
        (infer(PIXELS, id="x" * 257), "id"),
        (infer(PIXELS, outputs=[{"name": "logits"}]), "outputs.0.name"),
        (infer(PIXELS, outputs=[{"name": "label"}] * 4), "outputs"),
        (infer(PIXELS, []), "inputs.0.shape"),
        (infer(PIXELS, [3.0, 16, 16, 3]), "inputs.0.shape"),
        (infer(PIXELS, [3, 16, 16, True]), "inputs.0.shape"),
        (infer(PIXELS, [3, 16, 16, 1]), "must be [N, 16, 16, 3] for UINT8, with N from 1 to 4"),
        (infer(PIXELS, [3]), "must be [N, 16, 16, 3] for UINT8"),
        (infer([], [0, 16, 16, 3]), "with N from 1 to 4"),
        (infer([TEXT] * 5, [5], "BYTES"), "must be [N] for BYTES, with N from 1 to 4"),
        (infer([TEXT], [-1], "BYTES"), "with N from 1 to 4"),
        (infer([TEXT], [10**30], "BYTES"), "inputs.0.shape"),
        (infer([TEXT], [1, 1, 1], "BYTES"), "must be [N] for BYTES"),
        (infer([TEXT], [2], "BYTES"), "as many values as the shape says"),
        (infer(PIXELS, [2, 16, 16, 3]), "as many values as the shape says"),
        (infer([7] * 767, [1, 16, 16, 3]), "as many values as the shape says"),
        (infer([TEXT], [1, 16, 16, 3]), "image 0 must be 16 x 16 x 3 whole numbers"),
        (infer([256] * 768, [1, 16, 16, 3]), "image 0 must be 16 x 16 x 3 whole numbers"),
        (infer([0] * 1535 + [0.5], [2, 16, 16, 3]), "image 1 must be 16 x 16 x 3 whole numbers"),
        (infer([[TEXT, TEXT]], [1], "BYTES"), "must be encoded images in base64"),
        (infer([5], [1], "BYTES"), "must be encoded images in base64"),
    ],
)
def test_invalid_requests_are_named_in_both_members(client, body, words):
    assert words in problem(client.post(INFER, json=body), 422, "invalid-parameter")


def test_one_bad_image_fails_the_request_and_is_named(client):
    for bad, status, slug in ((b"no image", 400, "undecodable-image"), (b"%PDF-1.4", 415, "unsupported-image")):
        body = infer([in_base64(RED), in_base64(bad)], [2], "BYTES")
        assert problem(client.post(INFER, json=body), status, slug).startswith("image 1: ")
    answer = client.post(INFER, json=infer(["http://elsewhere/cat.png"], [1], "BYTES"))
    assert problem(answer, 400, "undecodable-image") == "image 0: the text of the image is not valid base64"
    assert client.app.state.service.admission.in_flight == 0


def test_invalid_json_and_large_bodies_are_refused(client):
    for body in (b"", b"{", b"\xff", b"[" * 10_000, b'{"inputs": [' + b"0," * 9000):
        problem(client.post(INFER, content=body), 400, "malformed-body")

    async def endless():  # without a length
        while True:
            yield b" " * 2**19

    problem(client.post(INFER, content=endless()), 413, "body-too-large")


# MLflow's scoring server


@pytest.mark.parametrize(
    ("method", "path", "words", "status"),
    [
        ("GET", "/v2/nothing", {}, 404),
        ("POST", "/v2/models/colours/infer/", {}, 404),
        ("POST", "/v2", {}, 405),
        ("DELETE", INFER, {}, 405),
        ("GET", "/ping/", {}, 404),
        ("POST", INFER, {"content": bytes(2**20 + 1)}, 413),
        ("POST", "/invocations", {"content": bytes(2**20 + 1)}, 413),
        ("POST", INFER, {"content": b"x", "headers": {"Content-Encoding": "br"}}, 415),
        ("POST", INFER, {"content": b"x", "headers": {"Origin": "http://elsewhere"}}, 403),
        ("POST", "/invocations", {"content": b"a,b\n1,2\n", "headers": {"Content-Type": "text/csv"}}, 415),
    ],
)
def test_errors_of_every_layer_have_the_member_error(client, method, path, words, status):
    answer = client.request(method, path, **words)
    assert (answer.status_code, set(answer.json())) == (status, MEMBERS)
    assert answer.json()["error"] == answer.json()["detail"]


def test_the_client_of_mlflow(client, wanted):
    answer = client.post("/invocations", content=dump_input_data(PIXELS), headers={"Content-Type": "application/json"})
    predictions = mlflow.deployments.PredictionsResponse.from_json(answer.text).get_predictions("ndarray")
    np.testing.assert_allclose(predictions, wanted(PIXELS), atol=0.01)
    assert client.get("/ping").status_code == 200
    assert client.get("/version").text == version("mlflow") == mlflow.__version__


def test_invocations_accepts_each_form_of_images(client, wanted):
    texts = [in_base64(RED), in_base64(GREEN)]
    answers = [
        client.post("/invocations", json={"inputs": texts}),
        client.post("/invocations", json={"instances": [{"b64": text} for text in texts]}),
        client.post("/invocations", files=[("files", RED), ("files", GREEN)]),
        client.post("/invocations", json={"dataframe_split": {"columns": ["image"], "data": [[one] for one in texts]}}),
    ]
    for answer in answers:
        assert set(answer.json()) == {"predictions"}
        np.testing.assert_allclose(answer.json()["predictions"], wanted([RED, GREEN]), atol=0.01)
    raw = client.post("/invocations", content=BLUE, headers={"Content-Type": "application/x-image"})
    np.testing.assert_allclose(raw.json()["predictions"], wanted([BLUE]), atol=0.01)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"inputs": PIXELS[0].tolist()}, "from 1 to 4 images"),  # 16 rows: the images' own axis is missing
        ({"inputs": PIXELS[:, :15].tolist()}, "image 0 must be 16 x 16 x 3 whole numbers"),
        ({"inputs": (PIXELS / 255).tolist()}, "image 0 must be 16 x 16 x 3 whole numbers"),
        ({"inputs": []}, "from 1 to 4 images"),
        ({"inputs": [TEXT] * 5}, "from 1 to 4 images"),
        ({"dataframe_split": {"columns": ["image"], "data": [[TEXT, TEXT]]}}, "dataframe_split must have one column"),
        ({"inputs": [TEXT], "params": {"top_k": 1}}, "the JSON body must be"),
    ],
)
def test_invalid_invocations_are_refused(client, value, words):
    assert words in problem(client.post("/invocations", json=value), 422, "invalid-parameter")


# Prometheus


@pytest.mark.parametrize("accept", ["application/json", "*/*", "application/openmetrics-text;version=1.0.0"])
def test_prometheus_metrics_are_text_for_every_accept_header(client, accept):
    client.post(INFER, json=infer(PIXELS))
    answer = client.get("/metrics/prometheus", headers={"Accept": accept})
    assert answer.headers["Content-Type"].startswith(accept.partition(";")[0] if "text" in accept else "text/plain")
    text = answer.text.removesuffix("# EOF\n")
    found = {sample.name: sample for one in text_string_to_metric_families(text) for sample in one.samples}
    assert found["serve_ready"].value == 1
    assert any(f'route="{INFER.replace("colours", "{name}")}"' in line for line in text.splitlines())


# No model, no free slots, another model


def test_without_a_model_there_is_a_retry_after(client, service):
    service.model_manager.model = None
    asked = dict.fromkeys(("/ping", "/v2/health/ready", "/v2/models/colours", "/v2/models/colours/ready"), "GET")
    for path, method in (asked | {INFER: "POST", "/invocations": "POST"}).items():
        answer = client.request(method, path)
        problem(answer, 503, "not-ready")
        assert int(answer.headers["Retry-After"]) >= 1
    assert client.get("/v2/health/live").status_code == client.get("/v2").status_code == 200


@pytest.mark.usefixtures("service")
def test_a_draining_service_is_not_ready(client):
    client.app.state.draining = True
    for path in ("/ping", "/v2/health/ready", "/v2/models/colours/ready"):
        problem(client.get(path), 503, "not-ready")
    assert client.post(INFER, json=infer(PIXELS)).status_code == 200  # what arrives still is answered


def test_without_free_slots_the_whole_request_is_refused(client, app):
    admission = app.state.service.admission
    with admission.slots(admission.free_slots - 2):
        for path, body in ((INFER, infer(PIXELS)), ("/invocations", {"inputs": PIXELS.tolist()})):
            problem(client.post(path, json=body), 503, "overloaded")
        assert client.post(INFER, json=infer(PIXELS[:2])).status_code == 200
    with admission.reserve_bytes(admission._max_bytes):
        problem(client.post(INFER, json=infer(PIXELS)), 503, "overloaded")
        problem(client.post("/invocations", content=RED), 503, "overloaded")
    assert admission.in_flight == admission._bytes == 0


class Changing:
    """A service that answers one image at a time, and changes between two models before some of them."""

    def __init__(self, service, models, before):
        self.service, self.models, self.before, self.asked = service, models, before, 0
        self.lock = asyncio.Lock()

    def __getattr__(self, name):
        return getattr(self.service, name)

    async def predict(self, read, top_k):
        async with self.lock:
            self.asked += 1
            if self.asked in self.before:
                self.service.model_manager.model = self.models[0]
                self.models = self.models[::-1]
            return await self.service.predict(read, top_k)


@pytest.fixture
def service(app):
    """The service, which the application has again after the test, with the same model."""
    service, model = app.state.service, app.state.service.model_manager.model
    yield service
    app.state.service, app.state.draining, service.model_manager.model = service, False, model


@pytest.fixture
def other(make_model):
    """A function that gives version 2, which finds all of its classes equally probable."""

    def make(classes=COLOURS):
        model = make_model(2, row=[1 / len(classes)] * len(classes), digest="v2")
        return replace(model, bundle=replace(model.bundle, card=colour_card(classes=classes)))

    return make


@pytest.mark.parametrize("before", [1, 2, 3])
@pytest.mark.parametrize("classes", [COLOURS, ("azure", "lime"), ("azure", "lime", "rose", "white")])
def test_one_model_predicts_all_images_of_a_request(client, service, other, classes, before):
    models = [other(classes), service.model_manager.model]
    client.app.state.service = Changing(service, models, {before})
    answer = client.post(INFER, json=infer(PIXELS))
    assert answer.json()["model_version"] == "2"
    assert outputs(answer)["probabilities"]["data"] == pytest.approx([1 / len(classes)] * 3 * len(classes))
    client.app.state.service = Changing(service, models[::-1], {before})
    answer = client.post("/v2/models/colours/versions/2/infer", json=infer(PIXELS))
    assert problem(answer, 404, "not-found") == "what is served here is colours, version 1"


def test_a_model_that_keeps_changing_is_a_503(client, service, other):
    client.app.state.service = changing = Changing(service, [other(), service.model_manager.model], set(range(100)))
    problem(client.post(INFER, json=infer(PIXELS)), 503, "not-ready")
    assert changing.asked == MAX_ATTEMPTS * len(PIXELS)


# Malformed bodies


def test_the_openapi_description_of_the_protocols(app):
    described = app.openapi()["paths"]
    for path in PREDICT_PATHS:
        body = described[path]["post"]["requestBody"]
        assert "$" not in json.dumps(body)
        assert {"400", "404", "413", "415", "422", "503"} <= set(described[path]["post"]["responses"])
    infer_body = described[PREDICT_PATHS[1]]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert infer_body["required"] == ["inputs"]
    assert infer_body["properties"]["inputs"]["items"]["required"] == ["name", "shape", "datatype"]
    assert set(infer_body["properties"]) == set(InferRequest.model_fields) == {"id", "parameters", "inputs", "outputs"}


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 300) | st.floats() | st.text(max_size=5)
    | st.sampled_from([10**40, TEXT, "\ud800", "UINT8", "BYTES", "images", [1, 16, 16, 3]]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
SMALL = infer([TEXT, TEXT], [2], "BYTES", id="a", outputs=[{"name": "label"}])
GOOD = [SMALL, infer(PIXELS[:1]), {"inputs": PIXELS[:1].tolist()}, {"instances": [{"image": {"b64": TEXT}}, TEXT]}]


def places(value, path=()):
    """Every place in a value, but of long lists only the first few."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    for key, one in inner:
        yield from places(one, (*path, key))


def changed(value, path, junk):
    """The value with ``junk`` in that place, or without what is there when ``junk`` says so."""
    if not path:
        return junk
    copy = value.copy()
    copy[path[0]] = changed(value[path[0]], path[1:], junk)
    return copy


@st.composite
def malformed(draw):
    """A good body with one or two places changed, at times cut short."""
    value = draw(st.sampled_from(GOOD))
    for _ in range(draw(st.integers(1, 2))):
        value = changed(value, draw(st.sampled_from(list(places(value)))), draw(JUNK))
    body = json.dumps(value).encode()
    return body[: draw(st.integers(0, len(body)))] if draw(st.integers(0, 9)) == 0 else body


@given(
    body=malformed() | st.binary(max_size=64),
    path=st.sampled_from(["/invocations", INFER, "/predict", "/predict/batch"]),
)
@settings(max_examples=200, deadline=None)
def test_no_body_is_a_500(client, body, path):
    answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (200, 400, 413, 415, 422), answer.text
    if answer.status_code != 200:
        assert answer.json()["detail"]
        assert path.startswith("/predict") or answer.json()["error"] == answer.json()["detail"]
    assert client.app.state.service.admission.in_flight == 0


def test_a_disconnected_client_frees_its_slots(make_app):
    async def leave():
        app = make_app()
        async with app.router.lifespan_context(app):
            service = app.state.service
            service.model_manager.poll()
            request = Request({"type": "http", "app": app, "path_params": {}, "state": {}})
            images = [lambda: encode(PIXELS[0])] * MAX_BATCH
            task = asyncio.create_task(inference_protocols._predict_all(request, images))
            await asyncio.sleep(0)
            assert service.admission.in_flight == MAX_BATCH
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return service.admission.in_flight

    assert asyncio.run(leave()) == 0

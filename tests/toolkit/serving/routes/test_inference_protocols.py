"""Other people's protocols, over the whole service: by their published descriptions, and by MLflow's own client."""

import asyncio
import base64
import json
import signal
import threading
import time
from dataclasses import replace
from importlib.metadata import version

import httpx
import mlflow.deployments
import numpy as np
import pytest
import tritonclient.http
import tritonclient.utils
from fastapi import Request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.utils.proto_json_utils import dump_input_data
from prometheus_client.parser import text_string_to_metric_families

from serve_model import ServeSettings, create_app
from support import MAX_WAIT_S
from support.colours import COLOURS, colour_card, colour_image, colour_pixels, encode
from toolkit.images.decoding import load_image
from toolkit.serving.http.server import Server, ServerConfig, listen
from toolkit.serving.problems import MEDIA_TYPE
from toolkit.serving.routes import inference_protocols
from toolkit.serving.routes.inference_protocols import EXTENSION, MAX_ATTEMPTS, PREDICT_PATHS
from toolkit.serving.schemas import InferRequest

SIZE, MOST = 16, 4
MEMBERS = {"type", "title", "status", "detail", "request_id", "error"}
PIXELS = np.stack([colour_pixels(colour, SIZE, np.random.default_rng(3)) for colour in ("red", "blue", "green")])
RED, GREEN, BLUE = (colour_image(colour, 1) for colour in ("red", "green", "blue"))
INFER = "/v2/models/colours/infer"

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
    """The value is what the description says, and has nothing besides."""
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


@pytest.fixture
def app(source, tmp_path):
    words = {
        "poll_interval": 3600,
        "threads": 2,
        "max_queue": 6,
        "max_batch": MOST,
        "max_body_mb": 1,
        "request_timeout": 600,
    }
    app = create_app(ServeSettings(**words, monitor_store=str(tmp_path / "m.db")))
    app.state.source = source
    return app


class Client:
    """Requests to an application that runs, without a socket, on a loop of their own."""

    def __init__(self, app, runner):
        self.app, self._run = app, runner.run
        self._client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")

    def request(self, method, path, **words):
        return self._run(self._client.request(method, path, **words))

    def get(self, path, **words):
        return self.request("GET", path, **words)

    def post(self, path, **words):
        return self.request("POST", path, **words)


@pytest.fixture
def client(app):
    with asyncio.Runner() as runner:
        lifespan = app.router.lifespan_context(app)
        runner.run(lifespan.__aenter__())
        app.state.service.model_manager.poll()
        yield Client(app, runner)
        runner.run(lifespan.__aexit__(None, None, None))


@pytest.fixture
def wanted(source):
    """A function that gives the bundle's own probabilities of encoded images, or of pixels."""

    def probabilities(images):
        if not isinstance(images, np.ndarray):
            images = np.stack([load_image(data, SIZE).pixels for data in images])
        return source.bundles[1].predict(images)

    return probabilities


def in_base64(data):
    return base64.b64encode(data).decode()


def infer(data, shape=None, datatype="UINT8", **more):
    """The body of an inference request."""
    tensor = {"name": "images", "shape": list(np.shape(data)) if shape is None else shape, "datatype": datatype}
    return {"inputs": [tensor | {"data": data.tolist() if isinstance(data, np.ndarray) else data}], **more}


def outputs(answer):
    assert answer.status_code == 200, answer.text
    return {one["name"]: one for one in answer.json()["outputs"]}


def problem(answer, status, slug):
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, MEDIA_TYPE), answer.text
    document = answer.json()
    assert set(document) - {"errors"} == MEMBERS
    assert document["type"] == f"/docs#problem-{slug}"
    assert document["error"] == document["detail"]
    return document["detail"]


# The Open Inference Protocol: what is served


def test_the_server_says_what_it_is(client):
    for path in ("/v2", "/v2/"):
        answer = client.get(path)
        assert_is(answer.json(), OBJECTS["metadata_server_response"])
        extensions = [EXTENSION, "binary_tensor_data"]
        assert answer.json() == {"name": client.app.title, "version": client.app.version, "extensions": extensions}
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"live": True, "ready": True}


def test_the_model_says_what_it_takes_and_gives(client):
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
def test_encoded_images_are_the_same_as_to_predict(client, wanted, nested):
    texts = [in_base64(RED), "data:image/png;base64," + in_base64(BLUE)]
    body = infer([[text] for text in texts], [2, 1], "BYTES") if nested else infer(texts, [2], "BYTES")
    found = outputs(client.post(INFER, json=body))
    np.testing.assert_allclose(np.reshape(found["probabilities"]["data"], (2, 3)), wanted([RED, BLUE]), atol=0.01)
    assert found["label"]["data"] == ["red", "blue"]
    direct = client.post("/predict", files={"file": BLUE}, params={"top_k": 3}).json()["top_k"]
    ranked = dict(zip(COLOURS, found["probabilities"]["data"][3:], strict=True))
    assert ranked == pytest.approx({one["label"]: one["probability"] for one in direct}, abs=0.01)


def test_an_id_of_a_prediction_takes_its_label(client):
    found = outputs(client.post(INFER, json=infer(PIXELS)))
    ids = found["prediction_id"]["data"]
    assert len(set(ids)) == 3
    told = [{"prediction_id": name, "label": "red"} for name in ids]
    assert client.post("/feedback", json=told).json() == {"recorded": 3}


def test_outputs_are_those_that_were_asked_for(client):
    for names in (["label"], ["prediction_id", "probabilities"], ["label", "label"]):
        asked = [{"name": name, "parameters": {"binary_data": False}} for name in names]
        answer = client.post(INFER, json=infer(PIXELS, outputs=asked))
        assert [one["name"] for one in answer.json()["outputs"]] == names
    assert len(outputs(client.post(INFER, json=infer(PIXELS, outputs=[])))) == 3


@pytest.mark.parametrize("name", ["42", "", "x" * 256, "é\u2028\U0001f600"])
def test_an_id_comes_back_and_parameters_do_not(client, name):
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
def test_what_breaks_a_rule_is_told_in_both_ways(client, body, words):
    assert words in problem(client.post(INFER, json=body), 422, "invalid-parameter")


def test_one_bad_image_fails_the_request_and_is_named(client):
    for bad, status, slug in ((b"no image", 400, "undecodable-image"), (b"%PDF-1.4", 415, "unsupported-image")):
        body = infer([in_base64(RED), in_base64(bad)], [2], "BYTES")
        assert problem(client.post(INFER, json=body), status, slug).startswith("image 1: ")
    answer = client.post(INFER, json=infer(["http://elsewhere/cat.png"], [1], "BYTES"))
    assert problem(answer, 400, "undecodable-image") == "image 0: the text of the image is not valid base64"
    assert client.app.state.service.admission.in_flight == 0


def test_bodies_that_are_no_json_or_too_large(client):
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
    ],
)
def test_an_error_from_wherever_is_told_where_these_clients_look(client, method, path, words, status):
    answer = client.request(method, path, **words)
    assert (answer.status_code, set(answer.json())) == (status, MEMBERS)
    assert answer.json()["error"] == answer.json()["detail"]


def test_no_list_of_outputs_is_all_of_them(client):
    for chosen in (None, []):
        assert set(outputs(client.post(INFER, json=infer(PIXELS, outputs=chosen)))) == {
            "probabilities", "label", "prediction_id"
        }  # fmt: skip


def test_whole_floats_are_pixels(client, wanted):
    found = outputs(client.post(INFER, json=infer(PIXELS.astype(float))))
    np.testing.assert_allclose(np.reshape(found["probabilities"]["data"], (-1, 3)), wanted(PIXELS), atol=1e-6)


# Binary tensor data


def in_bytes(data, body, **headers):
    """A request whose JSON is followed by bytes."""
    head = json.dumps(body).encode()
    return {"content": head + data, "headers": {"Inference-Header-Content-Length": str(len(head))} | headers}


def packed(*texts):
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)


def test_pixels_and_files_may_follow_the_json_as_they_are(client, wanted):
    for data, shape, datatype, images in (
        (PIXELS.tobytes(), [3, SIZE, SIZE, 3], "UINT8", PIXELS),
        (packed(RED, GREEN), [2], "BYTES", [RED, GREEN]),
        (packed(BLUE), [1, 1], "BYTES", [BLUE]),
    ):
        tensor = {
            "name": "images",
            "shape": shape,
            "datatype": datatype,
            "parameters": {"binary_data_size": len(data)},
        }
        found = outputs(client.post(INFER, **in_bytes(data, {"inputs": [tensor]})))
        np.testing.assert_allclose(np.reshape(found["probabilities"]["data"], (-1, 3)), wanted(images), atol=1e-6)


def test_outputs_are_bytes_where_that_was_asked_for(client, wanted):
    chosen = [
        {"name": "label", "parameters": {"binary_data": False}},
        {"name": "probabilities"},
        {"name": "prediction_id", "parameters": {"binary_data": True}},
    ]
    words = {"parameters": {"binary_data_output": True}, "outputs": chosen}
    answer = client.post(INFER, json=infer(PIXELS, **words))
    length = int(answer.headers["Inference-Header-Content-Length"])
    head, data = json.loads(answer.content[:length]), answer.content[length:]
    label, probabilities, name = head["outputs"]
    assert label["data"] == ["red", "blue", "green"]
    assert ("data" in probabilities, probabilities["parameters"]) == (False, {"binary_data_size": 36})
    np.testing.assert_allclose(np.frombuffer(data[:36], "<f4").reshape(3, 3), wanted(PIXELS), atol=1e-6)
    assert name["parameters"] == {"binary_data_size": len(data) - 36}
    first = data[40 : 40 + int.from_bytes(data[36:40], "little")].decode()
    assert client.post("/feedback", json={"prediction_id": first, "label": "red"}).status_code == 200


def tensor(size, shape=(1,), datatype="BYTES", **more):
    return {
        "name": "images",
        "shape": list(shape),
        "datatype": datatype,
        "parameters": {"binary_data_size": size},
    } | more


@pytest.mark.parametrize(
    ("data", "one", "headers", "status"),
    [
        (packed(RED), tensor(len(packed(RED)) + 1), {}, 422),
        (packed(RED), tensor(0), {}, 422),
        (packed(RED), tensor(len(packed(RED)), data=["x"]), {}, 422),
        (packed(RED), tensor(len(packed(RED)), (2,)), {}, 422),
        (packed(RED, RED), tensor(len(packed(RED, RED))), {}, 422),
        (packed(RED)[:-1], tensor(len(packed(RED)) - 1), {}, 422),
        (b"\xff\xff\xff\xffab", tensor(6), {}, 422),
        (b"ab", tensor(2), {}, 422),
        (packed(b"this is no image"), tensor(20), {}, 400),
        (bytes(767), tensor(767, (1, SIZE, SIZE, 3), "UINT8"), {}, 422),
        (bytes(768), tensor("768", (1, SIZE, SIZE, 3), "UINT8"), {}, 422),
        (bytes(768), tensor(-768, (1, SIZE, SIZE, 3), "UINT8"), {}, 422),
        (bytes(768), tensor(None, (1, SIZE, SIZE, 3), "UINT8"), {}, 422),
        *[(packed(RED), tensor(len(packed(RED))), {"Inference-Header-Content-Length": odd}, 400)
          for odd in ("-1", "x", "", "99999999", "9" * 5000, "0", "1.5")],
    ],
)  # fmt: skip
def test_bytes_that_do_not_fit_what_is_said_of_them_are_refused(client, data, one, headers, status):
    answer = client.post(INFER, **in_bytes(data, {"inputs": [one]}, **headers))
    assert answer.status_code == status, answer.text
    assert set(answer.json()) - {"errors"} == MEMBERS


@pytest.fixture
def address(app):
    """Where the application is served on a socket."""
    listener = listen("127.0.0.1", 0)
    server = Server(app, lambda: None, ServerConfig(0, 10))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield "{}:{}".format(*listener.getsockname())
    server.handle_exit(signal.SIGTERM, None)
    thread.join(MAX_WAIT_S)


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
def test_the_client_of_triton_understands_and_is_understood(address, wanted, binary, compression):
    waits = {"network_timeout": MAX_WAIT_S, "connection_timeout": MAX_WAIT_S}
    with tritonclient.http.InferenceServerClient(address, **waits) as client:
        while not client.is_model_ready("colours"):
            time.sleep(0.05)
        assert client.get_model_metadata("colours")["inputs"][0]["datatype"] == "UINT8"
        pixels = tritonclient.http.InferInput("images", list(PIXELS.shape), "UINT8")
        pixels.set_data_from_numpy(PIXELS, binary_data=binary)
        files = tritonclient.http.InferInput("images", [2], "BYTES")
        encoded = [RED, GREEN] if binary else [in_base64(RED).encode(), in_base64(GREEN).encode()]
        files.set_data_from_numpy(np.array(encoded, object), binary_data=binary)
        names = ("probabilities", "label", "prediction_id")
        for asked, images in ((pixels, PIXELS), (files, [RED, GREEN])):
            for chosen in (None, [tritonclient.http.InferRequestedOutput(name, binary_data=binary) for name in names]):
                result = client.infer(
                    "colours", [asked], outputs=chosen, request_id="7", request_compression_algorithm=compression
                )
                rows = wanted(images)
                np.testing.assert_allclose(result.as_numpy("probabilities"), rows, atol=1e-6)
                labels = [label if isinstance(label, str) else label.decode() for label in result.as_numpy("label")]
                assert labels == [COLOURS[index] for index in rows.argmax(axis=1)]
                assert result.get_response()["id"] == "7"
        with pytest.raises(tritonclient.utils.InferenceServerException, match="what is served here is colours"):
            client.infer("shapes", [pixels])


def test_the_client_of_mlflow_understands_and_is_understood(client, wanted):
    answer = client.post("/invocations", content=dump_input_data(PIXELS), headers={"Content-Type": "application/json"})
    predictions = mlflow.deployments.PredictionsResponse.from_json(answer.text).get_predictions("ndarray")
    np.testing.assert_allclose(predictions, wanted(PIXELS), atol=0.01)
    assert client.get("/ping").status_code == 200
    assert client.get("/version").text == version("mlflow") == mlflow.__version__


def test_invocations_takes_each_way_to_send_images(client, wanted):
    texts = [in_base64(RED), in_base64(GREEN)]
    answers = [
        client.post("/invocations", json={"inputs": texts}),
        client.post("/invocations", json={"instances": [{"b64": text} for text in texts]}),
        client.post("/invocations", json={"instances": [{"image": {"b64": text}} for text in texts]}),
        client.post("/invocations", files=[("files", RED), ("files", GREEN)]),
        client.post("/invocations", json={"inputs": texts, "params": {}}),
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
def test_other_invocations_are_refused_in_one_sentence(client, value, words):
    assert words in problem(client.post("/invocations", json=value), 422, "invalid-parameter")


def test_a_table_is_no_image(client):
    answer = client.post("/invocations", content=b"a,b\n1,2\n", headers={"Content-Type": "text/csv"})
    problem(answer, 415, "unsupported-media-type")


# The service's own addresses take the same JSON


def test_predict_takes_the_same_shapes_and_exactly_one(client):
    for value in ({"inputs": [TEXT]}, {"instances": [{"b64": f"data:image/png;base64,{TEXT}"}]}, {"image": TEXT}):
        assert client.post("/predict", json=value).json()["predicted_class"] == "red"
    answer = client.post("/predict", json={"inputs": [TEXT, TEXT]})
    assert (answer.status_code, answer.json()["detail"]) == (422, "the JSON body must hold one image")


def test_of_a_batch_of_json_each_image_fails_alone(client):
    entries = [TEXT, {"b64": "QUJDR"}, {"image": {"b64": in_base64(GREEN)}}, in_base64(b"no image")]
    results = client.post("/predict/batch", json={"instances": entries}).json()["results"]
    assert [one.get("prediction", {}).get("predicted_class") for one in results] == ["red", None, "green", None]
    assert [one.get("error", {}).get("status") for one in results] == [None, 400, None, 400]


# Prometheus


@pytest.mark.parametrize("accept", ["application/json", "*/*", "application/openmetrics-text;version=1.0.0"])
def test_figures_are_text_whatever_is_accepted(client, accept):
    client.post(INFER, json=infer(PIXELS))
    answer = client.get("/metrics/prometheus", headers={"Accept": accept})
    assert answer.headers["Content-Type"].startswith(accept.partition(";")[0] if "text" in accept else "text/plain")
    text = answer.text.removesuffix("# EOF\n")
    found = {sample.name: sample for one in text_string_to_metric_families(text) for sample in one.samples}
    assert found["serve_ready"].value == 1
    assert any(f'route="{INFER.replace("colours", "{name}")}"' in line for line in text.splitlines())


# When there is no model, or no room, or another model


def test_without_a_model_all_that_needs_one_says_when_to_ask_again(client, app):
    app.state.service.model_manager.model = None
    for method, path in (
        ("GET", "/ping"),
        ("GET", "/v2/health/ready"),
        ("GET", "/v2/models/colours"),
        ("GET", "/v2/models/colours/ready"),
        ("POST", INFER),
        ("POST", "/invocations"),
    ):
        answer = client.request(method, path)
        problem(answer, 503, "not-ready")
        assert int(answer.headers["Retry-After"]) >= 1
    assert client.get("/v2/health/live").status_code == client.get("/v2").status_code == 200


def test_a_service_that_is_about_to_end_is_not_ready(client, app):
    app.state.draining = True
    for path in ("/ping", "/v2/health/ready", "/v2/models/colours/ready"):
        problem(client.get(path), 503, "not-ready")
    assert client.post(INFER, json=infer(PIXELS)).status_code == 200  # what arrives still is answered


def test_without_room_the_whole_request_is_refused(client, app):
    admission = app.state.service.admission
    with admission.slots(admission.free_slots - 2):
        for path, body in ((INFER, infer(PIXELS)), ("/invocations", {"inputs": PIXELS.tolist()})):
            problem(client.post(path, json=body), 503, "full")
        assert client.post(INFER, json=infer(PIXELS[:2])).status_code == 200
    with admission.reserve_bytes(admission._most_bytes):
        problem(client.post(INFER, json=infer(PIXELS)), 503, "full")
        problem(client.post("/invocations", content=RED), 503, "full")
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
def other(make_model):
    """A function that gives version 2, which finds all of its classes equally probable."""

    def make(classes=COLOURS):
        model = make_model(2, row=[1 / len(classes)] * len(classes), digest="v2")
        return replace(model, bundle=replace(model.bundle, card=colour_card(classes=classes)))

    return make


@pytest.mark.parametrize("before", [1, 2, 3])
@pytest.mark.parametrize("classes", [COLOURS, ("azure", "lime"), ("azure", "lime", "rose", "white")])
def test_all_images_of_a_request_are_answered_by_one_model(client, app, other, classes, before):
    service, models = app.state.service, [other(classes), app.state.service.model_manager.model]
    app.state.service = Changing(service, models, {before})
    answer = client.post(INFER, json=infer(PIXELS))
    assert answer.json()["model_version"] == "2"
    assert outputs(answer)["probabilities"]["data"] == pytest.approx([1 / len(classes)] * 3 * len(classes))
    app.state.service = Changing(service, models[::-1], {before})
    answer = client.post("/v2/models/colours/versions/2/infer", json=infer(PIXELS))
    assert problem(answer, 404, "not-found") == "what is served here is colours, version 1"


def test_models_that_change_again_and_again_are_not_mixed(client, app, other):
    service = app.state.service
    app.state.service = Changing(service, [other(), service.model_manager.model], set(range(100)))
    problem(client.post(INFER, json=infer(PIXELS)), 503, "not-ready")
    assert app.state.service.asked == MAX_ATTEMPTS * len(PIXELS)


# Whatever is sent


def test_the_description_is_of_what_is_read(app):
    described = app.openapi()["paths"]
    for path in PREDICT_PATHS:
        body = described[path]["post"]["requestBody"]
        assert "$" not in json.dumps(body)
        assert {"400", "404", "413", "415", "422", "503"} <= set(described[path]["post"]["responses"])
    for operations in described.values():
        for response in (one for found in operations.values() for key, one in found["responses"].items() if key > "4"):
            assert set(response["content"]) == {MEDIA_TYPE}
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
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_sent_the_service_does_not_fail(client, body, path):
    answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (200, 400, 413, 415, 422), answer.text
    if answer.status_code != 200:
        assert answer.json()["detail"]
        assert path.startswith("/predict") or answer.json()["error"] == answer.json()["detail"]
    assert client.app.state.service.admission.in_flight == 0


def test_a_departed_client_gives_its_places_back(app):
    async def leave():
        async with app.router.lifespan_context(app):
            service = app.state.service
            service.model_manager.poll()
            request = Request({"type": "http", "app": app, "path_params": {}, "state": {}})
            images = [lambda: encode(PIXELS[0])] * MOST
            task = asyncio.create_task(inference_protocols._predict_all(request, images))
            await asyncio.sleep(0)
            assert service.admission.in_flight == MOST
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return service.admission.in_flight

    assert asyncio.run(leave()) == 0

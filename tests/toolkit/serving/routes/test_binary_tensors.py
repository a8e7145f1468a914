"""The binary tensor data extension, and Triton's client, which uses it."""

import json
import time

import numpy as np
import pytest
import tritonclient.http
import tritonclient.utils

from support import MAX_WAIT_S
from support.app_server import app_server
from support.colours import COLOURS
from support.infer_requests import BLUE, GREEN, INFER, MEMBERS, PIXELS, RED, SIZE, in_base64, infer, outputs


def in_bytes(data, body, **headers):
    """A request whose JSON is followed by bytes."""
    head = json.dumps(body).encode()
    return {"content": head + data, "headers": {"Inference-Header-Content-Length": str(len(head))} | headers}


def packed(*texts):
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)


def test_binary_inputs(client, wanted):
    for data, shape, datatype, images in (
        (PIXELS.tobytes(), [3, SIZE, SIZE, 3], "UINT8", PIXELS),
        (packed(RED, GREEN), [2], "BYTES", [RED, GREEN]),
        (packed(BLUE), [1, 1], "BYTES", [BLUE]),
    ):
        tensor = {"name": "images", "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": len(data)}}
        found = outputs(client.post(INFER, **in_bytes(data, {"inputs": [tensor]})))
        np.testing.assert_allclose(np.reshape(found["probabilities"]["data"], (-1, 3)), wanted(images), atol=1e-6)


def test_binary_outputs(client, wanted):
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
def test_invalid_binary_inputs_are_refused(client, data, one, headers, status):
    answer = client.post(INFER, **in_bytes(data, {"inputs": [one]}, **headers))
    assert answer.status_code == status, answer.text
    assert set(answer.json()) - {"errors"} == MEMBERS


@pytest.fixture(scope="module")
def address(make_app):
    """Host and port of an application on a socket."""
    with app_server(make_app()) as (_, port):
        yield f"127.0.0.1:{port}"


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
def test_the_client_of_triton(address, wanted, binary, compression):
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

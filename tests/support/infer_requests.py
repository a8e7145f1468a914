"""Images and bodies for the Open Inference Protocol."""

import base64

import numpy as np

from support.colours import colour_image, colour_pixels

SIZE, MAX_BATCH = 16, 4
PIXELS = np.stack([colour_pixels(colour, SIZE, np.random.default_rng(3)) for colour in ("red", "blue", "green")])
RED, GREEN, BLUE = (colour_image(colour, 1) for colour in ("red", "green", "blue"))
INFER = "/v2/models/colours/infer"
MEMBERS = {"type", "title", "status", "detail", "request_id", "error"}  # of a problem document


def in_base64(data):
    return base64.b64encode(data).decode()


def infer(data, shape=None, datatype="UINT8", **more):
    """The body of an inference request."""
    tensor = {"name": "images", "shape": list(np.shape(data)) if shape is None else shape, "datatype": datatype}
    return {"inputs": [tensor | {"data": data.tolist() if isinstance(data, np.ndarray) else data}], **more}


def outputs(answer):
    assert answer.status_code == 200, answer.text
    return {one["name"]: one for one in answer.json()["outputs"]}

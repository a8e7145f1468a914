"""Images are refused before their route when no slot is free; all other requests pass."""

import asyncio

import pytest

from toolkit.serving.http.load_shedding import LoadSheddingMiddleware
from toolkit.serving.inference.admission import AdmissionController
from toolkit.serving.problems import Problem


def test_images_are_refused_without_a_free_slot_and_nothing_else():
    controller, passed = AdmissionController(1, 0), []

    async def app(scope, _receive, _send):
        passed.append(scope["path"])

    def ask(path, method="POST", kind="http", admission=controller):
        middleware = LoadSheddingMiddleware(app, {"/predict"}, lambda: admission)
        asyncio.run(middleware({"type": kind, "path": path, "method": method}, None, None))

    ask("/predict")
    with controller.slots(1):
        with pytest.raises(Problem, match="1 image is being answered"):
            ask("/predict")
        ask("/feedback")
        ask("/predict", method="GET")
        ask("/predict", kind="websocket")
        ask("/predict", admission=None)
    assert passed == ["/predict", "/feedback", "/predict", "/predict", "/predict"]

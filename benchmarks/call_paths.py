"""The code on two ways through the project: one image to the monitor's queue, and logged predictions to an alert.

    python benchmarks/call_paths.py             # a minute
    python benchmarks/call_paths.py --list      # also every file with its functions
    python benchmarks/call_paths.py --json      # ends with one JSON object of claims

Counted are calls of the project's own functions in all threads, without comprehensions and generator
expressions. A change of file is a call whose function is in another file than the thread's call before.

    request    POST /predict with one PNG, to a service that has answered before, until the prediction is queued
    alert      1,500 predictions of low confidence, after 1,500 like the baseline's, until an alert is stored
"""

import argparse
import asyncio
import io
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import httpx
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.claims import Claim, Claims, conclude, machine  # noqa: E402
from model_registry import ModelRegistry  # noqa: E402
from monitoring import ModelMonitor  # noqa: E402
from serve_model import ServeSettings, create_app  # noqa: E402
from toolkit.bundle.baseline import Baseline  # noqa: E402
from toolkit.bundle.files import DIGEST_TAG, Card, Measurement, library_versions  # noqa: E402
from toolkit.bundle.program import Program, save_bundle  # noqa: E402
from toolkit.cli.settings import run_script  # noqa: E402
from toolkit.cli.terminal import echo, table  # noqa: E402
from toolkit.errors import ToolkitError  # noqa: E402
from toolkit.monitoring.store.background_writer import BackgroundWriter  # noqa: E402
from toolkit.tracking.connection import connect  # noqa: E402
from toolkit.tracking.run import Run  # noqa: E402

ADDRESS = "http://service"  # reached without a network
CLASSES = ("blue", "green", "red")
IMAGE_SIZE = 16  # pixels
HELD_OUT, WINDOW = 3_000, 1_500  # predictions of the baseline, and of each part of the stream
GOALS = {"request": (12, 49), "alert": (18, 127)}  # files and functions: half of version 0.1.0's first count
MAX_WAIT_S = 60.0  # until the service is ready, and until a prediction is queued

Call = tuple[int, str, str]  # thread, file, function


class CallTrace:
    """The project's own calls while it records, in this thread and in those started after it was made.

    Parameters
    ----------
    until
        Functions that end the recording when one of them returns.
    """

    def __init__(self, until: tuple[Callable[..., object], ...] = ()) -> None:
        self.calls: list[Call] = []
        self.finished = threading.Event()
        self._until = {function.__code__ for function in until}
        self._files: dict[CodeType, str | None] = {}
        self._recording = False
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record what is called within the block."""
        self._recording = True
        try:
            yield
        finally:
            self._recording = False
            threading.setprofile(None)
            sys.setprofile(None)

    def _profile(self, frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if not self._recording or event not in ("call", "return"):
            return
        if event == "return":
            if code in self._until:
                self._recording = False
                self.finished.set()
        elif file := self._file_of(code):
            self.calls.append((threading.get_ident(), file, code.co_qualname))

    def _file_of(self, code: CodeType) -> str | None:
        """The file in the project; None for other code and for comprehensions."""
        if code not in self._files:
            path = Path(code.co_filename)
            own = path.is_relative_to(ROOT) and ".venv" not in code.co_filename and path != Path(__file__)
            self._files[code] = str(path.relative_to(ROOT)) if own and not code.co_name.startswith("<") else None
        return self._files[code]


class PathSize(NamedTuple):
    """Amount of code on a call path."""

    files: int
    functions: int
    calls: int
    changes: int  # of file


def size_of(calls: list[Call]) -> PathSize:
    """Count a recording.

    >>> size_of([(1, "a.py", "f"), (1, "b.py", "g"), (1, "b.py", "g"), (2, "a.py", "f")])
    PathSize(files=2, functions=2, calls=4, changes=1)
    """
    last: dict[int, str] = {}
    changes = 0
    for thread, file, _ in calls:
        changes += last.get(thread, file) != file
        last[thread] = file
    return PathSize(len({file for _, file, _ in calls}), len({call[1:] for call in calls}), len(calls), changes)


def main() -> None:
    """Record both ways and print their sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print every file with its functions")
    parser.add_argument("--quick", action="store_true", help="changes nothing: there is nothing to repeat")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    options = parser.parse_args()
    echo(machine("torch", "mlflow", "fastapi"))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        ways = {"alert": record_alert(), "request": asyncio.run(record_request())}
        os.chdir(ROOT)
    sizes = {name: size_of(calls) for name, calls in ways.items()}
    echo(f"\n{table(['way', *PathSize._fields], [[name, *size] for name, size in sizes.items()])}")
    if options.list:
        for name, calls in ways.items():
            echo(f"\n{name}\n{listing(calls)}")
    claims: Claims = {}
    for name, (files, functions) in GOALS.items():
        claims[f"{name}_files"] = Claim(sizes[name].files, files, "lower", "one run, all threads")
        claims[f"{name}_functions"] = Claim(sizes[name].functions, functions, "lower", "one run, all threads")
    conclude(claims, options.json)


def listing(calls: list[Call]) -> str:
    """Every file with its functions, a line each."""
    files = sorted({file for _, file, _ in calls})
    functions = {file: sorted({name for _, other, name in calls if other == file}) for file in files}
    return "\n".join(f"{file}: {', '.join(names)}" for file, names in functions.items())


def record_alert() -> list[Call]:
    """The calls from logged predictions to a stored alert."""
    generator = np.random.default_rng(0)
    probabilities, labels = predictions(HELD_OUT, 0.9, generator)
    trace = CallTrace()
    monitor = ModelMonitor("alert.db", Baseline(CLASSES, probabilities, labels), model_version="1")
    monitor.log_predictions(predictions(WINDOW, 0.9, generator)[0])
    monitor.flush()
    monitor.check_alerts()
    unlike, _ = predictions(WINDOW, 0.5, generator)
    with trace.recording():
        monitor.log_prediction(unlike[0])
        for start in range(1, WINDOW, 100):
            monitor.log_predictions(unlike[start : start + 100])
        monitor.flush()
        monitor.check_alerts()
    raised = monitor.alerts()
    monitor.close()
    if not raised:
        raise ToolkitError("no alert was raised, so there is no way to one")
    return trace.calls


def predictions(n: int, confidence: float, generator: np.random.Generator) -> tuple[NDArray[Any], NDArray[Any]]:
    """float32 (n, K) probabilities that are sure by about ``confidence``, and the classes (n,) that they favour."""
    labels = generator.integers(0, len(CLASSES), n)
    rows = np.full((n, len(CLASSES)), (1 - confidence) / (len(CLASSES) - 1)) + generator.random((n, 1)) * 0.01
    rows[np.arange(n), labels] = confidence + generator.random(n) * 0.02
    return (rows / rows.sum(axis=1, keepdims=True)).astype(np.float32), labels


async def record_request() -> list[Call]:
    """The calls from ``POST /predict`` to the queue of the monitor's writer."""
    uri = f"sqlite:///{Path.cwd()}/mlflow.db"
    register_model(uri)
    image = png()
    trace = CallTrace(until=(BackgroundWriter.put, BackgroundWriter.put_many))
    settings = ServeSettings.model_validate({"tracking_uri": uri, "engine": "torch", "monitor_store": "request.db"})
    app = create_app(settings)
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url=ADDRESS) as client:
        deadline = time.monotonic() + MAX_WAIT_S
        while (await client.get("/readyz")).status_code != 200 and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        for _ in range(3):  # what is made once, at the first request, is made here
            await post_image(client, image)
            await asyncio.sleep(0.5)
        with trace.recording():
            await post_image(client, image)
            await asyncio.to_thread(trace.finished.wait, MAX_WAIT_S)
    return trace.calls


async def post_image(client: httpx.AsyncClient, image: bytes) -> None:
    """Have an image classified."""
    response = await client.post("/predict", content=image, headers={"Content-Type": "image/png"})
    if response.status_code != 200:
        raise ToolkitError(f"POST /predict must answer with status 200, got {response.status_code}: {response.text}")


def png() -> bytes:
    """A grey image as a file."""
    buffer = io.BytesIO()
    Image.new("RGB", (48, 48), "grey").save(buffer, "PNG")
    return buffer.getvalue()


class MeanColour(torch.nn.Module):
    """A network of one layer on the mean colour."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(3, len(CLASSES))

    def forward(self, images: torch.Tensor) -> torch.Tensor:  # (N, 3, H, W) -> (N, K)
        logits: torch.Tensor = self.head(images.mean(dim=(2, 3)))
        return logits


def register_model(uri: str) -> None:
    """Log a run with a bundle in a new store, and move its model into Production."""
    client, (probabilities, labels) = connect(uri), predictions(300, 0.9, np.random.default_rng(0))
    baseline = Baseline(CLASSES, probabilities, labels)
    card = Card(
        classes=CLASSES, image_size=IMAGE_SIZE, network="simple_cnn", settings={}, data={"name": "colours"},
        metrics={"accuracy": Measurement(value=baseline.accuracy, images=baseline.size)}, temperature=1.0,
        code_version="benchmark", versions=library_versions(),
    )  # fmt: skip
    with Run(client, "call_paths", role="final", name="call_paths") as run:
        model_id, folder = run.new_model(), Path("bundle")
        digest = save_bundle(folder, Program(MeanColour()), card, baseline, run_id=run.id, model_id=model_id)
        run.model(folder, model_id, {DIGEST_TAG: digest})
        run.metrics({"mean_cv_accuracy": baseline.accuracy})
    registry = ModelRegistry(uri)
    registry.transition_model_stage(registry.register_best_model("call_paths"), "Production")


if __name__ == "__main__":
    run_script(main)

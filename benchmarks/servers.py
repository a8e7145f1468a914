"""The servers that serving.py compares, from start to end, and what they serve: photographs and a model's versions."""

import io
import json
import math
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from PIL import Image, ImageOps
from torchvision.models import resnet18

from benchmarks.images import CLASSES, listed, photograph
from benchmarks.load import HOST, Answer, closed, form, raw, text
from model_registry import ModelRegistry
from toolkit.bundle.baseline import Baseline
from toolkit.bundle.files import DIGEST_TAG, Card, Measurement, library_versions
from toolkit.bundle.program import Program, save_bundle
from toolkit.errors import ToolkitError
from toolkit.images.decoding import load_image
from toolkit.tracking.connection import MlflowClient, connect
from toolkit.tracking.run import Run

ROOT = Path(__file__).resolve().parent.parent

SIZE = 224  # px of the network's input
SMALL, LARGE = "640 x 427", "12 megapixels"
SIDES = {SMALL: (640, 427), LARGE: (4000, 3000)}  # px
PHOTOGRAPHS = {SMALL: 32, LARGE: 8}
QUALITY, GRAIN = 85, 4  # of the JPEGs; standard deviation of the noise that replaces detail, of 255
MODEL, METRIC = "image-classifier", "best_val_accuracy"
VERSIONS = (2, 1)  # the first serves: it is the newest, so that the service has none to prepare
WARM, WARMING = 50, 16  # requests before anything is measured, and their clients
READY_SECONDS, STOP_SECONDS, POLL_SECONDS = 180, 15, 0.02  # until a server is ready, or has ended; between two checks
CONTEXT = multiprocessing.get_context("forkserver")  # its children have imported all of this already

# Runs a script as where uvloop is not installed: peers bring it, and the project's requirements do not.
WITHOUT_UVLOOP = (
    "import runpy, sys; sys.modules['uvloop'] = None; del sys.argv[0]; sys.path[0] = {root!r};"
    " runpy.run_path(sys.argv[0], run_name='__main__')"
)


class Contestant(NamedTuple):
    """A server: how it is started at a port, where it says that it is ready, and how it is sent a JPEG file."""

    command: Callable[[int], list[str]]
    ready: str
    request: Callable[[bytes], bytes]


def _python(*words: object) -> list[str]:
    return [sys.executable, *map(str, words)]


OURS = "ours"
SERVERS = {
    OURS: Contestant(
        lambda port: _python("-c", WITHOUT_UVLOOP.format(root=str(ROOT)), ROOT / "serve_model.py", "--port", port),
        "/readyz", lambda image: raw("/predict", image),
    ),
    "FastAPI": Contestant(
        lambda port: _python("-m", "uvicorn", "--factory", "benchmarks.peers:plain", "--port", port,
                             "--log-level", "warning"),
        "/openapi.json", lambda image: form("/predict", "file", image),
    ),
    "LitServe": Contestant(
        lambda port: _python("-m", "benchmarks.peers", port),
        "/health", lambda image: text("/predict", {"image_data": image}),
    ),
    "MLflow": Contestant(
        lambda port: _python("-m", "mlflow", "models", "serve", "--model-uri", f"models:/{MODEL}@production",
                             "--env-manager", "local", "--host", HOST, "--port", port),
        "/ping", lambda image: text("/invocations", {"inputs": [load_image(image, SIZE).pixels.tolist()]}),
    ),
    "BentoML": Contestant(
        lambda port: _python("-m", "bentoml", "serve", "benchmarks.peers:Classifier", "--working-dir", ROOT,
                             "--host", HOST, "--port", port, "--quiet"),
        "/readyz", lambda image: form("/classify", "images", image),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Setup:
    """Settings that all contestants share."""

    folder: Path  # of their files and of the store
    bundle: Path  # of the version in Production
    digest: str
    images: Mapping[str, Sequence[bytes]]  # JPEG files by size
    sender: Executor  # the process that loads come from

    def send(self, load: Callable[..., list[Answer]], *words: Any, **named: Any) -> list[Answer]:
        """Responses to a load."""
        return self.sender.submit(load, *words, **named).result()

    def requests(self, name: str) -> dict[str, list[bytes]]:
        """The images as a contestant is sent them, by size."""
        return {size: [SERVERS[name].request(data) for data in files] for size, files in self.images.items()}


@contextmanager
def prepared(folder: Path, data: Path | None) -> Iterator[Setup]:
    """All of it, in a folder; photographs are drawn unless there is some data."""
    for name in [name for name in os.environ if name.startswith(("SERVE_", "MONITORING_"))]:
        del os.environ[name]
    os.environ |= {
        "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": _store(folder), "MLFLOW_DISABLE_TELEMETRY": "true",
        "BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(folder / "bentoml"),
        "PEER_WEIGHTS": str(folder / "weights.pt"),
    }  # fmt: skip
    CONTEXT.set_forkserver_preload(["benchmarks.serving"])
    client = connect(_store(folder))
    digests = {number: register(client, number, folder) for number in sorted(VERSIONS)}
    with ProcessPoolExecutor(1, CONTEXT) as sender:
        setup = Setup(folder, _bundle(folder, VERSIONS[0]), digests[VERSIONS[0]], photographs(data), sender)
        promote(setup, VERSIONS[0])
        yield setup


# --- servers ------------------------------------------------------------------------------------


class RunningServer(NamedTuple):
    """A server that is ready, and what it is sent."""

    port: int
    process: psutil.Popen
    seconds: float  # from its start until it was ready
    requests: Mapping[str, Sequence[bytes]]  # by size


@contextmanager
def running(name: str, setup: Setup, *, watching: bool = True) -> Iterator[RunningServer]:
    """A server from its start to its end, already warm; ours polls the registry by itself if it is ``watching``."""
    port, log, began = _free_port(), setup.folder / "log", time.monotonic()
    with log.open("wb") as output:
        process = psutil.Popen(
            SERVERS[name].command(port), cwd=setup.folder, stdout=output, stderr=subprocess.STDOUT,
            env=os.environ | ({} if watching else {"SERVE_POLL_INTERVAL": "3600"}), start_new_session=True,
        )  # fmt: skip
    try:
        while not _answers(f"http://{HOST}:{port}{SERVERS[name].ready}"):
            if process.poll() is not None or time.monotonic() > began + READY_SECONDS:
                raise ToolkitError(f"{name} does not get ready; it says:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(POLL_SECONDS)
        server = RunningServer(port, process, time.monotonic() - began, setup.requests(name))
        statuses = {answer.status for answer in setup.send(closed, port, server.requests[SMALL], WARMING, count=WARM)}
        if statuses != {200}:
            raise ToolkitError(f"{name} answered its first requests with {statuses}")
        yield server
    finally:
        _stop(process)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310  our own address
            return bool(answer.status == 200)
    except OSError:
        return False


def _stop(process: psutil.Popen) -> None:
    """End a server and all that it started, which are a group of their own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired, psutil.TimeoutExpired):
            process.wait(STOP_SECONDS)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


# --- versions -----------------------------------------------------------------------------------


def _store(folder: Path) -> str:
    return f"sqlite:///{folder}/mlflow.db"


def _bundle(folder: Path, number: int) -> Path:
    return folder / f"bundle-{number}"


def register(client: MlflowClient, number: int, folder: Path) -> str:
    """Make a version of a network with random weights; its digest. Peers get the weights of the one that serves."""
    torch.manual_seed(number)
    network = resnet18(num_classes=CLASSES)
    if number == VERSIONS[0]:
        torch.save(network.state_dict(), folder / "weights.pt")
    names = tuple(f"flower-{kind:02}" for kind in range(CLASSES))
    card = Card(
        classes=names, image_size=SIZE, network="resnet18", settings={}, data={"name": "flowers"},
        metrics={"accuracy": Measurement(value=1 / CLASSES, images=CLASSES)}, temperature=1.0, code_version="benchmark",
        versions=library_versions(),
    )  # fmt: skip
    baseline = Baseline(names, np.full((CLASSES, CLASSES), 1 / CLASSES), np.arange(CLASSES))
    with Run(client, f"network {number}", role="final", name="random weights") as run:
        model_id, bundle = run.new_model(), _bundle(folder, number)
        digest = save_bundle(bundle, Program(network), card, baseline, run_id=run.id, model_id=model_id)
        run.model(bundle, model_id, {DIGEST_TAG: digest})
        run.metrics({METRIC: 1 / CLASSES})
    ModelRegistry(_store(folder), MODEL).register_best_model(f"network {number}", METRIC)
    return digest


def promote(setup: Setup, number: int) -> None:
    """Put a version into Production; which one is better does not matter here."""
    registry = ModelRegistry(_store(setup.folder), MODEL)
    registry.transition_model_stage(number, "Production", reason="for a benchmark", force=True)


def reload(server: RunningServer, number: int) -> None:
    """Have our service poll the registry, and wait until the version in Production answers."""
    question = urllib.request.Request(f"http://{HOST}:{server.port}/admin/reload", method="POST")
    with urllib.request.urlopen(question, timeout=READY_SECONDS) as answer:  # noqa: S310  our own address
        reload = json.load(answer)
    if reload["outcome"] != "loaded" or int(reload["model"]["version"]) != number:
        raise ToolkitError(f"version {number} was not loaded: {reload}")


def engine_of(server: RunningServer) -> str:
    """Name of the engine in our service."""
    with urllib.request.urlopen(f"http://{HOST}:{server.port}/model-info", timeout=READY_SECONDS) as answer:
        return str(json.load(answer)["engine"])


# --- photographs --------------------------------------------------------------------------------


def photographs(data: Path | None) -> dict[str, list[bytes]]:
    """JPEG files of both sizes, of one's own photographs or of drawn ones."""
    most = max(PHOTOGRAPHS.values())
    if data:
        files = listed(data)
        scenes = [Image.open(file).convert("RGB") for file in files[:: math.ceil(len(files) / most)]]
    else:
        scenes = [photograph(number % CLASSES, number) for number in range(most)]
    return {
        size: [jpeg(scene, SIDES[size], number) for number, scene in enumerate(scenes[:count])]
        for size, count in PHOTOGRAPHS.items()
    }


def jpeg(scene: Image.Image, sides: tuple[int, int], seed: int) -> bytes:
    """An image cut to a size; where it has to grow, grain makes up for the detail that it lacks."""
    fitted = ImageOps.fit(scene, sides)
    if sides[0] > scene.width:
        noise = np.random.default_rng(seed).normal(0, GRAIN, (sides[1], sides[0], 1)).astype(np.int16)
        fitted = Image.fromarray((np.asarray(fitted) + noise).clip(0, 255).astype(np.uint8))
    buffer = io.BytesIO()
    fitted.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()

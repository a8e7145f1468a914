"""What all tests share: a folder of their own, real MLflow stores, and a tiny model that is right by construction.

The tiny model tells red, green and blue pictures apart by their mean colour. Its weights are
written by hand, so tests have a real, accurate bundle within two seconds and without training.
"""

import io
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from toolkit import tracking
from toolkit.baseline import Baseline
from toolkit.bundle import DIGEST_TAG, Card, Measured, Program, library_versions, save_bundle

ROOT = Path(__file__).parent.parent
COLOURS = ("blue", "green", "red")


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test works in an empty folder and sees none of the user's variables."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith(("TRAIN_", "TUNE_", "REGISTRY_", "MONITORING_", "SERVE_")):
            monkeypatch.delenv(name)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


class ColourNetwork(torch.nn.Module):
    """Logits proportional to the mean of the blue, green and red channel."""

    def __init__(self, strength: float = 8.0) -> None:
        super().__init__()
        self.head = torch.nn.Linear(3, 3, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(strength * torch.eye(3).flip(0))  # RGB -> (blue, green, red)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:  # (N, 3, H, W) -> (N, 3)
        return self.head(pictures.mean(dim=(2, 3)))


def colour_pixels(colour: str, size: int, generator: np.random.Generator) -> np.ndarray:
    """uint8 (size, size, 3): noise, brighter in one channel."""
    pixels = generator.integers(0, 90, (size, size, 3))
    pixels[..., {"red": 0, "green": 1, "blue": 2}[colour]] += generator.integers(60, 160)
    return pixels.astype(np.uint8)


def encode(pixels: np.ndarray, format: str = "PNG") -> bytes:  # noqa: A002
    """A picture as the bytes of a file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


def colour_picture(colour: str, seed: int = 0, size: int = 48) -> bytes:
    """A PNG of a red, green or blue picture."""
    return encode(colour_pixels(colour, size, np.random.default_rng(seed)))


@pytest.fixture
def colour_folder(tmp_path: Path) -> Path:
    """A folder of pictures, one sub-folder a class, 40 pictures each."""
    folder = tmp_path / "colours"
    for index, colour in enumerate(COLOURS):
        (folder / colour).mkdir(parents=True)
        for number in range(40):
            (folder / colour / f"{number}.png").write_bytes(colour_picture(colour, seed=100 * index + number, size=32))
    return folder


def colour_card(network: str = "simple_cnn", classes: tuple[str, ...] = COLOURS, size: int = 16) -> Card:
    return Card(
        classes=classes,
        image_size=size,
        network=network,
        settings={"learning_rate": 0.001},
        data={"name": "colours", "fingerprint": "f" * 16},
        metrics={"accuracy": Measured(value=1.0, pictures=300)},
        temperature=1.0,
        code_version="test",
        versions=library_versions(),
    )


def colour_baseline(program: Program, count: int = 300, size: int = 16) -> Baseline:
    generator = np.random.default_rng(7)
    labels = np.arange(count) % len(COLOURS)
    pictures = np.stack([colour_pixels(COLOURS[label], size, generator) for label in labels])
    with torch.inference_mode():
        probabilities = program.eval()(torch.from_numpy(pictures)).numpy()
    hashes = np.array([f"{index:064x}" for index in range(count)])
    return Baseline(COLOURS, probabilities, labels, hashes)


@pytest.fixture
def log_colour_run() -> Callable[..., str]:
    """A function that logs a finished run with a real bundle and gives the run's id."""

    def log(
        client: tracking.MlflowClient,
        experiment: str = "training",
        *,
        metrics: Mapping[str, float] | None = None,
        role: str = "final",
        strength: float = 8.0,
        folder: Path | None = None,
    ) -> str:
        with tracking.Run(client, experiment, role=role, name="colours") as run:
            program = Program(ColourNetwork(strength))
            target = (folder or Path.cwd()) / f"bundle-{run.id}"
            model_id = run.new_model()
            digest = save_bundle(
                target, program, colour_card(), colour_baseline(program), run_id=run.id, model_id=model_id
            )
            run.model(target, model_id, {DIGEST_TAG: digest})
            run.metrics(metrics or {"best_val_accuracy": 0.9, "mean_cv_accuracy": 0.9})
        return run.id

    return log


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_answers(url: str, process: subprocess.Popen[bytes], seconds: float = 90) -> None:
    """Wait until a server answers at all, or say how it ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"the server ended with status {process.returncode}")
        try:
            urllib.request.urlopen(url, timeout=2).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(f"{url} did not answer within {seconds} s")


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real MLflow server with artifacts behind its proxy."""
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    words = ["-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    words += ["--backend-store-uri", "sqlite:///mlflow.db", "--artifacts-destination", str(folder / "artifacts")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, *words], cwd=folder, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_until_answers(f"http://127.0.0.1:{port}/health", process)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, 15)
            process.wait(20)


def run_script(*words: str, timeout: float = 240, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run one of the scripts as a user would, in the test's own folder."""
    script, *arguments = words
    return subprocess.run(
        [sys.executable, str(ROOT / script), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **variables},
    )


def error_line(result: subprocess.CompletedProcess[str]) -> str:
    """The one line of a script that refused its input: no traceback, status 2."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if re.match(r"\w+\.py: error: ", line)]
    assert len(lines) == 1, result.stderr
    return lines[0]

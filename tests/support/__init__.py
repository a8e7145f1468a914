"""What tests share: a tiny model that is right by construction, images for it, servers and scripts as processes.

The tiny model tells red, green and blue images apart by their mean colour. Its weights are
written by hand, so tests have a real, accurate bundle within two seconds and without training.
"""

import io
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from toolkit.bundle.baseline import Baseline
from toolkit.bundle.files import Card, Measurement, library_versions
from toolkit.tracking.connection import connect

ROOT = Path(__file__).parent.parent.parent
LONGEST_WAIT = 600.0  # seconds: what a test waits for comes sooner on the busiest machine, or never


COLOURS = ("blue", "green", "red")


class ColourNetwork(torch.nn.Module):
    """Logits proportional to the mean of the blue, green and red channel; one that leans to red is often wrong."""

    def __init__(self, strength=8.0, lean=0.0):
        super().__init__()
        self.head = torch.nn.Linear(3, 3)
        with torch.no_grad():
            self.head.weight.copy_(strength * torch.eye(3).flip(0))  # RGB -> (blue, green, red)
            self.head.bias.copy_(torch.tensor([0.0, 0.0, lean]))

    def forward(self, images):  # (N, 3, H, W) -> (N, 3)
        return self.head(images.mean(dim=(2, 3)))


def colour_pixels(colour, size, generator):
    """uint8 (size, size, 3): noise, brighter in one channel."""
    pixels = generator.integers(0, 90, (size, size, 3))
    pixels[..., {"red": 0, "green": 1, "blue": 2}[colour]] += generator.integers(60, 160)
    return pixels.astype(np.uint8)


def encode(pixels, format="PNG"):  # noqa: A002
    """An image as the bytes of a file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


def colour_image(colour, seed=0, size=48):
    """A PNG of a red, green or blue image."""
    return encode(colour_pixels(colour, size, np.random.default_rng(seed)))


def colour_card(network="simple_cnn", classes=COLOURS, size=16, accuracy=1.0):
    return Card(
        classes=classes,
        image_size=size,
        network=network,
        settings={"learning_rate": 0.001},
        data={"name": "colours", "fingerprint": "f" * 16},
        metrics={"accuracy": Measurement(value=accuracy, images=300)},
        temperature=1.0,
        code_version="test",
        versions=library_versions(),
    )


def colour_baseline(program, count=300, size=16, held_out=slice(None)):
    """What a program does on a slice of some images, which are always the same."""
    generator = np.random.default_rng(7)
    labels = np.arange(count) % len(COLOURS)
    images = np.stack([colour_pixels(COLOURS[label], size, generator) for label in labels])
    with torch.inference_mode():
        probabilities = program.eval()(torch.from_numpy(images)).numpy()
    hashes = np.array([f"{index:064x}" for index in range(count)])
    return Baseline(COLOURS, probabilities[held_out], labels[held_out], hashes[held_out])


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_answers(url, process, seconds=LONGEST_WAIT):
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


@cache
def empty_store():
    """The file of a new SQLite store: to copy it takes no time, to have it made takes MLflow seconds."""
    with tempfile.TemporaryDirectory() as folder:
        connect(f"sqlite:///{folder}/mlflow.db")
        return Path(folder, "mlflow.db").read_bytes()


class MlflowServer:
    """A real MLflow server that can be killed, and started again at the same address with the same store."""

    def __init__(self, folder, *words, **variables):
        """``words`` are further options, ``variables`` its own; the store is ``mlflow.db`` in the folder."""
        self.folder, self.port, self._words, self._variables = folder, free_port(), words, variables
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self):
        if not (self.folder / "mlflow.db").exists():
            (self.folder / "mlflow.db").write_bytes(empty_store())
        words = ["-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        words += ["--backend-store-uri", "sqlite:///mlflow.db", *self._words]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *words],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={
                    **os.environ,
                    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven more processes
                    **self._variables,
                },
            )
        wait_until_answers(f"{self.url}/health", self._process)

    @property
    def running(self):
        return self._process.poll() is None

    def kill(self):
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        with suppress(OSError):
            while True:  # a process of the group may take a moment longer to be gone
                socket.create_connection(("127.0.0.1", self.port), 1).close()


@contextmanager
def full_disk(most):
    """No file of this process may have more bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def run_script(*words, timeout=LONGEST_WAIT, **variables):
    """Run one of the scripts as a user would, in the test's own folder."""
    script, *arguments = words
    return subprocess.run(
        [sys.executable, str(ROOT / script), *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **variables},
    )


def error_line(result):
    """The one line of a script that refused its input: no traceback, status 2."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if re.match(r"\w+\.py: error: ", line)]
    assert len(lines) == 1, result.stderr
    return lines[0]

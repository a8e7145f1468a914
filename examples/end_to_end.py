"""The whole loop in a few minutes: track, tune, train, register, promote, serve, monitor, and detect a shift.

    make demo                                   # or: python examples/end_to_end.py
    make demo KEEP=1                            # or: python examples/end_to_end.py --keep

Everything is real and on this machine: an MLflow server, the scripts as a user runs them, the service
as a process of its own. The images are scikit-learn's handwritten digits. Those that were held out are
sent to the service, and their labels as feedback; then the same images again, blurred, noisy and
inverted, until the monitor raises an alert. All files go to a new folder under runs/; with --keep both
servers stay up, and the command to stop them is printed.
"""

import argparse
import io
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter, ImageOps

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from model_registry import ModelRegistry  # noqa: E402
from monitoring import ModelMonitor  # noqa: E402
from toolkit.cli.settings import run_script  # noqa: E402
from toolkit.errors import TrackingError  # noqa: E402
from toolkit.training.data.catalogue import open_catalogue  # noqa: E402
from toolkit.training.data.splits import split  # noqa: E402

HELD_OUT = 0.15  # the default of train_cnn.py
START_SECONDS = 600  # a first start creates MLflow's tables; one that ends is noticed at once
REFRESH_S = 120  # at most; /metrics evaluates the windows every few seconds
CLIENTS = 4
PLOTS = ("accuracy", "confidence", "predictions", "drift", "inputs", "calibration")
LABELS_A_REQUEST = 50
NOISE = 90.0  # standard deviation on a scale of 0 to 255

Label = str
Encoded = bytes


@dataclass(frozen=True)
class Server:
    """A server of the demonstration."""

    url: str
    process: subprocess.Popen[bytes]


def main() -> None:
    """Run the loop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="leave the servers up")
    keep = parser.parse_args().keep
    folder = ROOT / "runs" / f"demo-{datetime.now():%Y%m%d-%H%M%S}"
    folder.mkdir(parents=True)
    started = time.monotonic()
    with ExitStack() as servers:
        mlflow, service = loop(folder, servers)
        print_summary(folder, mlflow, service, time.monotonic() - started, keep=keep)
        if keep:
            servers.pop_all()


def loop(folder: Path, servers: ExitStack) -> tuple[Server, Server]:
    """Every step, from an empty folder to an alert."""
    heading("1/7  an MLflow server")
    mlflow = start_mlflow(folder, servers)
    os.environ["MLFLOW_TRACKING_URI"] = mlflow.url
    # Idle threads of the training must leave the cores to the servers.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    print(f"runs and models are at {mlflow.url}")

    heading("2/7  tuning: six trials of five stratified folds")
    run(folder, "hyperopt_tuning.py", "--preset", "quick")

    heading("3/7  training one network with plain settings, for comparison")
    run(folder, "train_cnn.py", "--image-size", "32", "--epochs", "3", "--run-name", "plain-settings")

    heading("4/7  registering both, promoting the better one")
    version = promote_the_better(ModelRegistry())

    heading("5/7  serving the Production model")
    service = start_service(folder, servers)
    print(f"version {version} answers at {service.url}")

    heading("6/7  held-out images")
    images = held_out_images()
    answer = predict(service, images[0][1])
    print(f"POST /predict with one image of a {images[0][0]} answers:\n{json.dumps(answer)}\n")
    send("held-out images", service, images)
    print_state(service, len(images))

    heading("7/7  degraded images")
    for name, degrade in FAULTS.items():
        send(f"{name} images", service, [(label, degrade(image)) for label, image in images])
    print_state(service, len(images) * (1 + len(FAULTS)))
    print_drift(folder)
    return mlflow, service


# Steps


def promote_the_better(registry: ModelRegistry) -> int:
    """Register the best run of each experiment; the more accurate version goes into Production."""
    tuned = registry.register_best_model("hyperopt_tuning", "mean_cv_accuracy")
    plain = registry.register_best_model("training", "best_val_accuracy")
    table = registry.compare_models([tuned, plain])
    columns = ["network", "accuracy", "accuracy_low", "accuracy_high", "images", "gained", "lost", "p_value"]
    print(table[columns].to_string(float_format="{:.4g}".format, na_rep=""))
    better = int(table["accuracy"].idxmax())
    promoted = registry.transition_model_stage(better, "Production", reason="more accurate on held-out images")
    print(f"\nversion {promoted.version} is in {promoted.stage}, with {promoted.metrics['accuracy']:.1%} accuracy")
    return promoted.version


def held_out_images() -> list[tuple[Label, Encoded]]:
    """The digits that training holds out: by their content, so the same in each run."""
    digits = open_catalogue("digits")
    held_out = [int(index) for index in split(digits, HELD_OUT).held_out]
    sources = [(digits.classes[digits.labels[index]], digits.sources[index]) for index in held_out]
    return [(label, source) for label, source in sources if isinstance(source, bytes)]


def send(what: str, service: Server, images: Sequence[tuple[Label, Encoded]]) -> None:
    """Have images classified, then send their true labels as feedback."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(lambda labelled: predict(service, labelled[1]), images))
    truths = [
        {"prediction_id": answer["prediction_id"], "label": label, "source": "demo"}
        for answer, (label, _) in zip(answers, images, strict=True)
    ]
    for some in slices(truths, LABELS_A_REQUEST):
        post(f"{service.url}/feedback", json.dumps(some).encode(), "application/json")
    right = sum(answer["predicted_class"] == label for answer, (label, _) in zip(answers, images, strict=True))
    print(f"{what + ':':<22}{len(images)} answered, {right / len(images):.1%} correctly")


def print_state(service: Server, labels: int) -> None:
    """Print the service's metrics and alerts, once all labels are evaluated."""
    deadline = time.monotonic() + REFRESH_S
    while True:
        metrics = get(f"{service.url}/metrics")
        if metrics["monitor"]["windows"]["long"]["n_labels"] >= labels or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    window = metrics["monitor"]["windows"]["short"]
    latency = metrics["latency_ms"]["total"]
    print(
        f"GET /metrics: {window['n']} predictions and {window['n_labels']} labels in the short window, accuracy"
        f" {window['accuracy']:.1%} (reference {window['reference_accuracy']:.1%}); median {latency['median']:.1f} ms"
        " an image"
    )
    alerts = get(f"{service.url}/alerts")
    print(f"GET /alerts: {len(alerts)} raised")
    for alert in reversed(alerts):
        if alert["cleared_at"] is None:
            print(f"  {alert['level'].upper()} ({alert['status']}, {alert['window']} window): {alert['message']}")


def print_drift(folder: Path) -> None:
    """Print the drift report and save plots, as a notebook would."""
    monitor = ModelMonitor(folder / "monitoring.db")
    print(f"\nModelMonitor().detect_drift(), in a notebook:\n\n{monitor.detect_drift()}\n")
    for metric in PLOTS:
        monitor.plot_metrics(metric).savefig(folder / f"{metric}.png")
    monitor.close()


def print_summary(folder: Path, mlflow: Server, service: Server, seconds: float, *, keep: bool) -> None:
    """Print where the results are."""
    place = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    heading(f"done in {seconds / 60:.1f} minutes")
    print(f"plots              {place}/{PLOTS[0]}.png, {', '.join(f'{metric}.png' for metric in PLOTS[1:])}")
    print(f"logs               {place}/mlflow.log, serve.log")
    if keep:
        print(f"dashboard          {service.url}/dashboard")
        print(f"runs and models    {mlflow.url}")
        print(f"\nboth servers are still up; stop them with: kill {mlflow.process.pid} {service.process.pid}")
        return
    print("both servers are being stopped; to start them again:\n")
    print(f"  cd {shlex.quote(str(place))}")
    print("  mlflow server --artifacts-destination ./artifacts        # then http://127.0.0.1:5000")
    print(
        f"  MLFLOW_TRACKING_URI=http://127.0.0.1:5000 python {ROOT / 'serve_model.py'}"
        "   # then http://127.0.0.1:8000/dashboard"
    )
    print("\nor keep them running: make demo KEEP=1")


# Faults of images


def change(image: Encoded, how: Callable[[Image.Image], Image.Image]) -> Encoded:
    """Decode, change, and encode as PNG."""
    buffer = io.BytesIO()
    how(Image.open(io.BytesIO(image)).convert("L")).save(buffer, "PNG")
    return buffer.getvalue()


def blurred(image: Encoded) -> Encoded:
    """Out of focus."""
    return change(image, lambda loaded: loaded.filter(ImageFilter.GaussianBlur(1.5)))


def noisy(image: Encoded) -> Encoded:
    """The noise of a bad sensor, which depends on the image alone."""
    noise = np.random.default_rng(list(image[-16:])).normal(0, NOISE, (8, 8))
    return change(image, lambda loaded: Image.fromarray((np.asarray(loaded) + noise).clip(0, 255).astype(np.uint8)))


def inverted(image: Encoded) -> Encoded:
    """Black for white."""
    return change(image, ImageOps.invert)


FAULTS = {"blurred": blurred, "noisy": noisy, "inverted": inverted}


# Scripts, servers and requests


def run(folder: Path, script: str, *words: str) -> None:
    """Run one of the scripts as a user would; when it fails, exit with its status."""
    print(f"$ python {script} {' '.join(words)}", flush=True)
    if status := subprocess.run([sys.executable, str(ROOT / script), *words], cwd=folder, check=False).returncode:
        sys.exit(status)


def start_mlflow(folder: Path, servers: ExitStack) -> Server:
    """A tracking server with its database and its files in the folder."""
    port = free_port()
    words = ["-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    words += ["--backend-store-uri", "sqlite:///mlflow.db", "--artifacts-destination", "./artifacts"]
    return start("mlflow", words, folder, servers, f"http://127.0.0.1:{port}", "/health")


def start_service(folder: Path, servers: ExitStack) -> Server:
    """The service, ready with the Production model; its store of predictions is in the folder."""
    port = free_port()
    words = [str(ROOT / "serve_model.py"), "--port", str(port)]
    return start("serve", words, folder, servers, f"http://127.0.0.1:{port}", "/readyz")


def start(name: str, words: Sequence[str], folder: Path, servers: ExitStack, url: str, path: str) -> Server:
    """A process of a group of its own, once it answers; ``servers`` ends it with its children."""
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, *words], cwd=folder, stdout=log, stderr=log, start_new_session=True)
    servers.callback(stop, process)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url + path, timeout=5).close()
        except OSError:  # not listening yet, or not ready
            time.sleep(0.2)
        else:
            return Server(url, process)
    raise TrackingError(f"a server did not start; see {folder / name}.log")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and its children, politely first."""
    for sign, seconds in ((signal.SIGTERM, 30), (signal.SIGKILL, 5)):
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, sign)
            process.wait(seconds)
            return


def free_port() -> int:
    """A free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def predict(service: Server, image: Encoded) -> dict[str, Any]:
    """The service's prediction for one image."""
    answer: dict[str, Any] = post(f"{service.url}/predict?top_k=3", image, "application/octet-stream")
    return answer


def post(url: str, body: bytes, media_type: str) -> Any:
    """The JSON response of a POST."""
    request = urllib.request.Request(url, body, {"Content-Type": media_type})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def get(url: str) -> Any:
    """The JSON response of a GET."""
    with urllib.request.urlopen(url, timeout=60) as response:
        return json.load(response)


def slices(items: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    """Slices of at most ``size`` items."""
    return (items[start : start + size] for start in range(0, len(items), size))


def heading(text: str) -> None:
    """A line that is easy to find."""
    print(f"\n== {text} {'=' * max(0, 100 - len(text))}\n", flush=True)


if __name__ == "__main__":
    run_script(main)

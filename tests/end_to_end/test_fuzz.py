"""Thousands of broken images and requests against one real process.

The variable FUZZ says how many broken requests, and SCHEMATHESIS how many examples of each address.
"""

import http.client
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from model_registry import ModelRegistry
from support import MAX_WAIT_S
from support.colours import COLOURS, colour_image, colour_pixels, encode
from support.forked_processes import forks
from toolkit.tracking.connection import connect

REQUESTS, FIRST = int(os.environ.get("FUZZ", "2000")), 1000  # in all; and before memory is measured first
EXAMPLES = int(os.environ.get("SCHEMATHESIS", "4"))  # of each address, in each phase
CLIENTS = 3
MAX_GROWTH = 30 * 2**20  # bytes of memory
ALLOWED = {200, 400, 413, 415, 422, 503}
BOUNDARY = "a4d1"
ODD_HEADERS = [
    b"Content-Type: text/html", b"Content-Type: multipart/mixed; boundary=x", b"Content-Length: 99999999999",
    b"Content-Transfer-Encoding: base64", b"X: \xff\xfe\x00", b": empty", b"no colon", b"A:" + b"b" * 9000,
    b"Content-Disposition: form-data; name=\"file\"; filename=\"../../etc/passwd\"", b"Content-Disposition: form-data",
    b"Content-Disposition: form-data; name*=UTF-8''%ff; filename*=utf-8''%00",
]  # fmt: skip


@dataclass
class Served:
    """A service that runs."""

    port: int
    process: psutil.Process
    log: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory, log_colour_run):
    folder = tmp_path_factory.mktemp("fuzz")
    uri = f"sqlite:///{folder}/mlflow.db"
    with chdir(folder):
        log_colour_run(connect(uri), "hyperopt_tuning", role="study")
        registry = ModelRegistry(uri)
        registry.transition_model_stage(registry.register_best_model(), "Production")
    words = ["--port", "0", "--tracking-uri", uri, "--engine", "torch", "--max-body-mb", "1", "--poll-interval", "0.5"]
    words += ["--max-pixels", "1000000", "--drain-timeout", "0", "--body-timeout", "60", "--read-timeout", "60"]
    with forks(folder) as forked:
        script = forked.start("serve_model.py", *words, folder=folder)
        port = int(re.findall(r"on http://127\.0\.0\.1:(\d+)", script.wait_for("serving"))[0])
        served = Served(port, psutil.Process(script.pid), script.folder / "err")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=MAX_WAIT_S)
        while ask(connection, "GET", "/readyz")[0] != 200:
            pass
        connection.close()
        yield served
        served.process.send_signal(signal.SIGTERM)
        ended = script.end()
    assert ended.status == 0
    assert "Traceback" not in ended.err


def ask(connection, method, path, body=b"", content_type="image/png"):
    """Status and body of an answer; a connection that the service has closed is opened again by the next question."""
    connection.request(method, path, body, {"Content-Type": content_type})
    answer = connection.getresponse()
    return answer.status, answer.read()


def is_still_right(connection):
    answers = [ask(connection, "POST", "/predict", colour_image(colour)) for colour in COLOURS]
    return [json.loads(body)["predicted_class"] for _, body in answers] == list(COLOURS)


# Mutations


def originals():
    """Small images of every format, and of the modes and blocks that decoders stumble over."""
    pixels = colour_pixels("green", 20, np.random.default_rng(1))
    image, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112] = 6
    found = [encode(pixels, name) for name in ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")]
    for mode, name, words in (
        ("RGB", "JPEG", {"exif": exif, "progressive": True}),
        ("CMYK", "JPEG", {}),
        ("RGBA", "PNG", {"exif": exif}),
        ("P", "PNG", {"save_all": True, "append_images": [image.convert("P")]}),
        ("RGB", "GIF", {"save_all": True, "append_images": [image.rotate(90)]}),
        ("I;16", "TIFF", {"compression": "tiff_lzw"}),
        ("1", "TIFF", {"compression": "group4"}),
        ("RGB", "TIFF", {"compression": "tiff_adobe_deflate"}),
    ):
        buffer = io.BytesIO()
        (image.convert("L") if mode == "I;16" else image).convert(mode).save(buffer, name, **words)
        found.append(buffer.getvalue())
    return found


ORIGINALS = originals()
EXTREMES = [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"]  # as numbers


def mutated(data, generator):
    """A file with one or two changes."""
    changed = bytearray(data)
    for kind in generator.integers(7, size=generator.integers(1, 3)):
        whole = len(changed) or 1
        start, length, times = int(generator.integers(whole)), int(generator.integers(200)), int(generator.integers(50))
        other = ORIGINALS[times % len(ORIGINALS)]
        if kind == 0 and changed:  # flip some bits
            for place in generator.integers(whole, size=8):
                changed[place] ^= 1 << int(generator.integers(8))
        elif kind == 1:  # where headers are
            changed[start % 64 : start % 64 + 1] = generator.bytes(1)
        elif kind == 2:  # cut short
            del changed[start:]
        elif kind == 3:
            del changed[start : start + length // 5]
        elif kind == 4:
            changed[start:start] = changed[start : start + length] * times
        elif kind == 5:  # the beginning of one, the end of another
            changed[start:] = other[int(generator.integers(len(other))) :]
        else:
            changed[start : start + 4] = EXTREMES[length % 3]
    return bytes(changed)


def form(generator, field):
    """A form with some files, some odd headers, and now and then broken as a whole."""
    parts = b""
    for _ in range(generator.integers(1, 4)):
        image = ORIGINALS[generator.integers(len(ORIGINALS))]
        image = mutated(image, generator) if generator.random() < 0.5 else image
        lines = [f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; filename="a.png"'.encode()]
        lines += [ODD_HEADERS[number] for number in generator.integers(len(ODD_HEADERS), size=generator.integers(3))]
        parts += b"\r\n".join([*lines, b"", image, b""])
    body = parts + f"--{BOUNDARY}--\r\n".encode()
    return mutated(body, generator) if generator.random() < 0.5 else body


def request(generator):
    """Path, body and declared type of one request."""
    kind = generator.random()
    if kind < 0.6:
        path = "/predict" if kind < 0.5 else "/invocations"
        return path, mutated(ORIGINALS[generator.integers(len(ORIGINALS))], generator), "image/png"
    path, field = [("/predict", "file"), ("/predict/batch", "files"), ("/invocations", "files")][generator.integers(3)]
    return path, form(generator, field), f"multipart/form-data; boundary={BOUNDARY}"


def send(port, seed, count):
    """Send so many over a connection that is kept alive, and count what came back."""
    generator = np.random.default_rng(seed)
    statuses = Counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=MAX_WAIT_S)
    for _ in range(count):
        path, body, content_type = request(generator)
        status, answer = ask(connection, "POST", path, body, content_type)
        assert status in ALLOWED, (status, answer, path, content_type, body)
        json.loads(answer)
        statuses[status] += 1
    connection.close()
    return statuses


def test_broken_requests_are_answered(served):
    statuses = Counter()
    memory = []
    with ThreadPoolExecutor(CLIENTS) as clients:
        for phase, count in enumerate((FIRST, REQUESTS - FIRST)):
            crowd = [
                clients.submit(send, served.port, CLIENTS * phase + number, count // CLIENTS)
                for number in range(CLIENTS)
            ]
            for one in crowd:
                statuses += one.result()
            memory.append(served.process.memory_info().rss)
    assert min(statuses[200], statuses[400]) > REQUESTS / 10, statuses  # both sides of the line were tried
    assert memory[1] - memory[0] < MAX_GROWTH
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=MAX_WAIT_S)
    assert is_still_right(connection)
    assert json.loads(ask(connection, "GET", "/health")[1])["queue"]["depth"] == 0
    connection.close()


CHECKS = """
# Which bytes are an image, how many pixels and classes the model has, and what they are called: no schema says it.
[checks]
positive_data_acceptance.enabled = false
"""


def test_the_service_conforms_to_its_openapi_description(served, tmp_path):
    (tmp_path / "schemathesis.toml").write_text(CHECKS)
    words = ["--max-examples", str(EXAMPLES), "--seed", "1", "--continue-on-failure", "--generation-database", "none"]
    words += ["--suppress-health-check", "all", "--no-color", "--request-timeout", str(MAX_WAIT_S), "--no-shrink"]
    result = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", "run", f"http://127.0.0.1:{served.port}/openapi.json", *words],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=MAX_WAIT_S,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=MAX_WAIT_S)
    assert is_still_right(connection)
    connection.close()

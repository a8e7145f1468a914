"""Behaviours of the service under hostile clients and failures of the registry or the disk: one real process.

Promotion and rollback under load, and the end by SIGTERM, are in ``tests/serve_model/``.
"""

import io
import json
import re
import resource
import signal
import socket
import sqlite3
import struct
from contextlib import ExitStack, chdir, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree
from time import sleep

import httpx
import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from model_registry import ModelRegistry
from support import MAX_WAIT_S, ROOT, wait_until
from support.colours import ColourNetwork, colour_baseline, colour_card, encode
from support.forked_processes import Script, forks
from toolkit.bundle.files import DIGEST_TAG, PROGRAM
from toolkit.bundle.program import Program, save_bundle
from toolkit.registry.versions import ALIASES
from toolkit.serving.problems import MEDIA_TYPE
from toolkit.tracking.connection import connect
from toolkit.tracking.run import Run

MODEL = "image-classifier"
LIMITS = {"max-body-mb": 1, "max-pixels": 100_000, "threads": 1, "max-queue": 4, "max-batch": 5}
TIMEOUTS = {"header-timeout": 1, "body-timeout": 3, "read-timeout": 1, "poll-interval": 0.2, "drain-timeout": 0.3}
MEBIBYTE = 2**20
SHADES = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}


def plain(colour, size=16):
    """uint8 (size, size, 3) of one colour."""
    return np.full((size, size, 3), SHADES[colour], np.uint8)


def written(image, format="PNG", **words):  # noqa: A002
    buffer = io.BytesIO()
    image.save(buffer, format, **words)
    return buffer.getvalue()


RED = encode(plain("red"))
NAN_IMAGE = encode(np.full((16, 16, 3), (255, 0, 0), np.uint8))


class CornerNetwork(ColourNetwork):
    """The colour of the upper left quarter; NaN where that is redder than anything in the baseline."""

    def forward(self, images):
        corner = images[:, :, :8, :8]  # of 16 x 16
        means = corner.mean(dim=(2, 3))
        return torch.where(means[:, :1] - means[:, 1:2] > 3.5, torch.nan, super().forward(corner))


class Mute(ColourNetwork):
    """NaN for everything."""

    def forward(self, images):
        return super().forward(images) * torch.nan


class Registered:
    """A store with three versions: one that serves, one like it, and one that gives no numbers."""

    def __init__(self, folder):
        self.file = folder / "mlflow.db"
        self.uri = f"sqlite:///{self.file}"
        self.client = connect(self.uri)
        self.registry = ModelRegistry(self.uri, MODEL)
        self.versions = {name: self._register(folder, name, network) for name, network in {
            "good": CornerNetwork(), "other": CornerNetwork(2.0), "mute": Mute()
        }.items()}  # fmt: skip
        self.promote("good")

    def _register(self, folder, name, network):
        """Its baseline is that of a version that answers: the registry itself would not take the mute one's."""
        with Run(self.client, name, role="study", name=name) as run:
            model_id, baseline = run.new_model(), colour_baseline(Program(CornerNetwork()))
            place, program = folder / name, Program(network)
            digest = save_bundle(place, program, colour_card(), baseline, run_id=run.id, model_id=model_id)
            run.model(place, model_id, {DIGEST_TAG: digest})
            run.metrics({"mean_cv_accuracy": 0.9})
        return self.registry.register_best_model(name)

    def promote(self, name):
        """Put it into Production; the mute one with MLflow's own client, since the registry refuses it."""
        if name == "mute":
            self.client.set_registered_model_alias(MODEL, ALIASES["Production"], str(self.versions[name]))
            return
        self.registry.transition_model_stage(self.versions[name], "Production", reason="a test", force=True)

    @contextmanager
    def altered(self, name):
        """A version's program has a wrong byte for a while."""
        run = self.client.get_run(self.registry.get(self.versions[name]).run_id)
        model = self.client.get_logged_model(run.outputs.model_outputs[0].model_id)
        with damaged(Path(model.artifact_location.removeprefix("file://"), PROGRAM), -100, b"?"):
            yield

    @contextmanager
    def of_another_digest(self, name):
        """The recorded digest of a version is a wrong one for a while."""
        version = self.registry.get(self.versions[name])
        self.client.set_model_version_tag(MODEL, str(version.version), DIGEST_TAG, "0" * 64)
        yield
        self.client.set_model_version_tag(MODEL, str(version.version), DIGEST_TAG, version.digest)


@contextmanager
def damaged(path, place, data):
    """A file with other bytes at a place, written into it, for a while."""
    whole = path.read_bytes()
    changed = bytearray(whole)
    place %= len(whole)
    changed[place : place + len(data)] = data
    path.write_bytes(changed)
    try:
        yield
    finally:
        path.write_bytes(whole)


@dataclass
class Served:
    """A service that runs, and a client of it."""

    script: Script
    folder: Path
    client: httpx.Client

    @property
    def process(self):
        return psutil.Process(self.script.pid)

    def predict(self, image=RED, **words):
        return self.client.post("/predict", content=image, **words)

    def health(self):
        return self.client.get("/health").json()

    def metrics(self):
        return self.client.get("/metrics").json()

    def connect(self, *pieces):
        """A connection that has sent something."""
        url = self.client.base_url
        connection = socket.create_connection((url.host, url.port), timeout=MAX_WAIT_S)
        for piece in pieces:
            connection.sendall(piece)
        return connection

    @contextmanager
    def paused(self, store=None):
        """Stopped at a moment when it holds no lock on ``store``, a SQLite file, if one is given."""
        self.script.pause()
        while store and is_locked(store):
            self.script.go_on()
            sleep(0.05)
            self.script.pause()
        try:
            yield
        finally:
            self.script.go_on()


def is_locked(store):
    with closing(sqlite3.connect(store, timeout=0.2, isolation_level=None)) as database:
        try:
            database.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            return True
    return False


def head(path, length, method="POST", more=""):
    return f"{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n{more}\r\n".encode()


def answer_of(connection):
    """Status, headers and body of an answer that ends with its connection."""
    with connection, connection.makefile("rb") as file:
        first, _, body = file.read().partition(b"\r\n\r\n")
    line, *headers = first.decode().split("\r\n")
    return int(line.split()[1]), httpx.Headers([header.split(": ", 1) for header in headers]), body


def is_up_to_date(health):
    """Whether what the registry says is served; alerts may stand all the same."""
    return bool(health["ready"]) and health["components"]["registry"]["status"] == "ok"


def problem(response, status, slug):
    """What a problem document says."""
    document = response.json()
    assert response.status_code == document["status"] == status, response.text
    assert response.headers["Content-Type"] == MEDIA_TYPE
    assert document["type"] == f"/docs#problem-{slug}"
    assert str(ROOT) not in response.text
    return str(document["detail"])


def probabilities(response):
    assert response.status_code == 200, response.text
    return {one["label"]: one["probability"] for one in response.json()["top_k"]}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("behaviours")


@pytest.fixture(scope="module")
def registered(scratch):
    with chdir(scratch):
        return Registered(scratch)


@pytest.fixture(scope="module")
def forked(scratch):
    with forks(scratch) as forked:
        yield forked


@contextmanager
def serving(forked, folder, uri):
    """A process that serves in a folder."""
    options = {"port": 0, "tracking-uri": uri, "engine": "torch", **LIMITS, **TIMEOUTS}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    script = forked.start("serve_model.py", *words, folder=folder)
    url = re.findall(r"on (http://\S+)", script.wait_for("serving"))[0]
    with httpx.Client(base_url=url, timeout=MAX_WAIT_S, trust_env=False) as client:
        yield Served(script, folder, client)
    psutil.Process(script.pid).send_signal(signal.SIGTERM)
    ended = script.end()
    assert ended.status == 0
    assert "Traceback" not in ended.err


@pytest.fixture(scope="module")
def served(forked, scratch, registered):
    folder = scratch / "served"
    folder.mkdir()
    with serving(forked, folder, registered.uri) as served:
        wait_until(lambda: is_up_to_date(served.health()))
        yield served


# Bodies


@pytest.mark.parametrize("path", ["/predict", "/predict/batch", "/invocations", "/feedback", "/nothing"])
@pytest.mark.parametrize("announced", [True, False])
def test_a_body_over_the_limit_is_refused(served, path, announced):
    pieces = [bytes(MEBIBYTE // 2)] * 3
    body = b"".join(pieces) if announced else iter(pieces)
    answer = served.client.post(path, content=body, headers={"Content-Type": "application/json"})
    if path == "/nothing" and not announced:
        problem(answer, 404, "not-found")  # there is no route to read it
    else:
        problem(answer, 413, "body-too-large")


def test_a_body_over_the_limit_is_not_buffered(served):
    assert answer_of(served.connect(head("/predict", 2**40)))[0] == 413  # without a byte of it
    before = served.process.memory_info().rss
    chunks = (b"%x\r\n%s\r\n" % (MEBIBYTE, bytes(MEBIBYTE))) * 256
    start = b"POST /predict HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    with served.connect(start) as endless, pytest.raises(ConnectionError):
        endless.sendall(chunks)
    assert served.process.memory_info().rss - before < 32 * MEBIBYTE
    assert served.predict().status_code == 200


# Images

BMP = struct.pack("<2sIIIIiiHHIIiiII", b"BM", 54, 0, 54, 40, 20_000, 5_000, 1, 24, 0, 0, 0, 0, 0, 0)  # and no pixel
GIF = struct.pack("<6sHHBBBBHHHHBB", b"GIF89a", 60_000, 60_000, 0, 0, 0, ord(","), 0, 0, 60_000, 60_000, 0, 8)


@pytest.mark.parametrize("image", [encode(np.zeros((251, 400, 3), np.uint8)), BMP, GIF])
def test_an_image_of_too_many_pixels_is_refused_by_its_header(served, image):
    assert "pixels" in problem(served.predict(image), 413, "image-too-large")
    assert served.predict(encode(np.zeros((250, 400, 3), np.uint8))).status_code == 200


NOISE = np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP"])
def test_a_truncated_image_is_refused(served, format):  # noqa: A002
    whole = encode(NOISE, format)
    assert served.predict(whole).status_code == 200
    for length in (len(whole) // 4, len(whole) // 2, len(whole) * 9 // 10):
        assert "broken" in problem(served.predict(whole[:length]), 400, "undecodable-image")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "the file is empty"),
        (b"<!DOCTYPE html><title>404</title>", "not an image"),
        (bytes(range(256)) * 4, "not an image"),
        (b"\0", "not an image"),
    ],
)
def test_other_content_is_no_image(served, body, reason):
    assert reason in problem(served.predict(body), 400, "undecodable-image")
    assert reason in problem(served.client.post("/predict", files={"file": body}), 400, "undecodable-image")


def test_the_content_decides_the_format(served):
    wanted = probabilities(served.predict(RED))
    for declared in ("image/jpeg", "image/svg+xml", "application/octet-stream"):
        assert probabilities(served.predict(RED, headers={"Content-Type": declared})) == wanted
        form = {"file": ("image.exe", RED, declared)}
        assert probabilities(served.client.post("/predict", files=form)) == wanted
    for foreign in (b"%PDF-1.7\n", b"\0\0\0\x18ftypmp42" + bytes(99), b"8BPS" + bytes(99), b"<svg/>"):
        problem(served.predict(foreign, headers={"Content-Type": "image/png"}), 415, "unsupported-image")
        problem(served.client.post("/predict", files={"file": ("a.png", foreign, "image/png")}), 415,
                "unsupported-image")  # fmt: skip


def test_images_of_phones_are_decoded_as_in_training(served):
    from pillow_heif import from_pillow

    heic = io.BytesIO()
    from_pillow(Image.open(io.BytesIO(RED))).save(heic, quality=100, chroma=444)
    for body in (heic.getvalue(), heic.getvalue() + b"\0\0\0\x08free"):
        assert probabilities(served.predict(body)) == pytest.approx(probabilities(served.predict(RED)), abs=0.02)
    odd = Image.Exif()
    odd[0x0112], odd[0x011A] = 3, 72.0
    block = odd.tobytes().replace(b"\x01\x1a\0\5", b"\x01\x1a\0\7")  # bytes where a fraction should be
    turned = io.BytesIO()
    Image.open(io.BytesIO(RED)).rotate(180).save(turned, "PNG", exif=block)
    assert probabilities(served.predict(turned.getvalue())) == probabilities(served.predict(RED))


# How a camera that was held in the way of an orientation has stored an upright image: the inverse of what
# EXIF 2.3, table 6, says about rows and columns.
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: np.rot90,
    7: lambda upright: upright[::-1, ::-1].transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(served, format):  # noqa: A002
    rows = [[plain("blue"), plain("red")], [plain("green"), plain("red")]]
    upright = np.concatenate([np.concatenate(row, axis=1) for row in rows])
    found, as_stored = {}, set()
    for orientation, stored in STORED.items():
        image, exif = Image.fromarray(np.ascontiguousarray(stored(upright))), Image.Exif()
        exif[0x0112] = orientation
        words = {"quality": 100} if format == "JPEG" else {"lossless": True} if format == "WEBP" else {}
        found[orientation] = probabilities(served.predict(written(image, format, exif=exif, **words)))
        as_stored.add(served.predict(written(image)).json()["predicted_class"])
    assert as_stored == {"red", "green", "blue"}  # the model distinguishes them
    for one in found.values():
        assert one == pytest.approx(found[1], abs=2e-3 if format == "JPEG" else 1e-6)
    assert max(found[1], key=found[1].__getitem__) == "blue"


def grey(values):
    return np.repeat(values.astype(np.uint8)[..., None], 3, axis=2)


RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
COVER = np.random.default_rng(4).integers(0, 256, (16, 16, 4), dtype=np.uint8)
OVER_WHITE = (COVER[..., :3].astype(float) * COVER[..., 3:] + 255.0 * (255 - COVER[..., 3:])) / 255
COLOURFUL = COVER[..., :3]
FEW = Image.fromarray(COLOURFUL).quantize(7)
# Each kind of image with the 8-bit RGB that it is defined to be.
KINDS = {
    "palette": (written(FEW), np.asarray(FEW.convert("RGB"))),
    "alpha": (written(Image.fromarray(COVER)), OVER_WHITE.round()),
    "hidden colour": (written(Image.new("RGBA", (16, 16), (255, 0, 0, 0))), np.full((16, 16, 3), 255)),
    "grey with alpha": (
        written(Image.merge("LA", (Image.fromarray(RAMP), Image.new("L", (16, 16), 0)))),
        np.full((16, 16, 3), 255),
    ),
    "1 bit": (written(Image.fromarray(RAMP > 99)), grey(255 * (RAMP > 99))),
    "16 bits": (written(Image.fromarray(RAMP.astype(np.uint16) * 257)), grey(RAMP)),
    "float": (written(Image.fromarray(RAMP.astype(np.float32) / 255), "TIFF"), grey(RAMP)),
    "CMYK": (written(Image.frombytes("CMYK", (16, 16), np.dstack([255 - COLOURFUL, 0 * RAMP]).tobytes()), "TIFF"),
             COLOURFUL),
    "animation": (
        written(Image.fromarray(plain("blue")), save_all=True, append_images=[Image.fromarray(plain("green"))]),
        plain("blue"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_image_mode_is_decoded_as_defined(served, kind):
    image, same = KINDS[kind]
    wanted = probabilities(served.predict(encode(same.astype(np.uint8))))
    tolerance = 1e-2 if kind == "alpha" else 1e-6  # alpha is laid over white in whole numbers
    assert probabilities(served.predict(image)) == pytest.approx(wanted, abs=tolerance)


def test_nan_of_the_network_is_a_500(served):
    before = served.metrics()
    problem(served.predict(NAN_IMAGE), 500, "non-finite-output")
    answer = served.client.post("/predict/batch", files=[("files", RED), ("files", NAN_IMAGE)]).json()
    assert [one.get("error", {}).get("status") for one in answer["results"]] == [None, 500]
    after = served.metrics()
    assert after["non_finite"]["1"] - before["non_finite"].get("1", 0) == 2
    assert sum(after["predictions"]["1"].values()) - sum(before["predictions"].get("1", {}).values()) == 1


# Clients


def test_slow_clients_get_a_408_while_others_are_served(served):
    half_head = served.connect(head("/predict", 9)[:-4])
    half_body = served.connect(head("/predict", len(RED)), RED[:20])
    drip = served.connect(head("/predict", len(RED)))
    silent = served.connect()
    drip.settimeout(0.1)
    received = b""
    for byte in RED:  # never a pause, and yet not done in time
        assert served.predict().status_code == 200
        try:
            drip.sendall(bytes([byte]))
            received = drip.recv(1)
        except TimeoutError:
            continue
        except ConnectionError:
            break
        if received:
            break
    drip.settimeout(60)
    for connection, start in ((half_head, b""), (half_body, b""), (drip, received)):
        with connection, connection.makefile("rb") as file:
            answer = start + file.read()
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert MEDIA_TYPE.encode() in answer
    assert silent.recv(1) == b""  # nothing was asked, so nothing is answered
    silent.close()


def requests(served):
    return served.metrics()["requests"].get("/predict", {})


def test_a_thousand_disconnects_leak_nothing(served):
    cut = head("/predict", len(RED)) + RED[:40]
    whole = head("/predict", len(RED)) + RED
    before = requests(served)

    def counted():
        return sum(requests(served).values()) - sum(before.values())

    def crowds(first, last):
        """Clients number ``first`` to ``last``, twenty at a time."""
        for number in range(first, last, 20):
            for _ in range(18):
                served.connect(cut).close()
            with served.paused():  # so that it sees the image and the disconnect at once
                for _ in range(2):
                    served.connect(whole).close()
            wait_until(lambda end=number + 20: counted() == end)

    crowds(0, 100)
    files, memory = served.process.num_fds(), served.process.memory_info().rss
    crowds(100, 1000)
    wait_until(lambda: served.process.num_fds() <= files)
    wait_until(lambda: served.health()["queue"] == {"depth": 0, "threads": 1, "free_slots": 5})
    after = requests(served)
    assert after["499"] - before.get("499", 0) >= 900
    assert {status for status in after if after[status] > before.get(status, 0)} <= {"499", "200", "503"}
    assert served.process.memory_info().rss - memory < 8 * MEBIBYTE
    assert probabilities(served.predict()) == probabilities(served.predict())


def test_a_full_queue_refuses_images_only(served):
    large = encode(np.random.default_rng(5).integers(0, 256, (300, 330, 3), dtype=np.uint8))
    form = httpx.Request("POST", "http://a", files=[("files", large[:190_000])] * 5)
    body, kind = form.read(), form.headers["Content-Type"]
    more = f"Content-Type: {kind}\r\nConnection: close\r\n"
    close = "Connection: close\r\n"
    with served.paused():
        crowd = [served.connect(head("/predict/batch", len(body), more=more), body[:-9]) for _ in range(2)]
        crowd += [served.connect(head("/predict", len(RED), more=close), RED) for _ in range(40)]
        others = [served.connect(head(path, 0, "GET", close)) for path in ("/health", "/metrics", "/livez", "/readyz")]
    for connection in crowd[:2]:
        connection.sendall(body[-9:])
    found = [answer_of(connection) for connection in crowd]
    assert {status for status, _, _ in found} == {200, 503}
    for status, headers, text in found:
        if status == 503:
            assert json.loads(text)["type"] == "/docs#problem-overloaded"
            assert 1 <= int(headers["Retry-After"]) <= 30
    assert [answer_of(connection)[0] for connection in others] == [200] * 4
    wait_until(lambda: served.health()["queue"]["depth"] == 0)


# Versions, the registry and the monitor


@pytest.mark.parametrize(
    ("name", "damage"),
    [("other", Registered.altered), ("other", Registered.of_another_digest), ("mute", lambda *_: nullcontext())],
    ids=["altered", "of another digest", "NaN"],
)
def test_a_broken_version_leaves_the_previous_one_serving(served, registered, name, damage):
    with ExitStack() as broken:
        with served.paused(registered.file):
            registered.promote(name)
            broken.enter_context(damage(registered, name))
        wait_until(lambda: "cannot be loaded" in (served.health()["reason"] or ""))  # not being tried again just now
        health = served.health()
        assert (health["status"], health["ready"]) == ("degraded", True)
        assert health["registry"]["load_failure"]["version"] == registered.versions[name]
        assert health["reason"].startswith(f"version {registered.versions[name]} cannot be loaded: ")
        assert served.predict().json()["model"]["version"] == registered.versions["good"]
        assert served.client.get("/readyz").status_code == 200
        registered.promote("good")
    wait_until(lambda: is_up_to_date(served.health()))
    assert served.metrics()["model_changes"] == 1


def test_a_registry_outage_changes_no_prediction(served, registered):
    wanted = probabilities(served.predict())
    with damaged(registered.file, 0, bytes(100)):
        health = wait_until(lambda: (now := served.health())["status"] == "degraded" and now)
        assert (health["ready"], health["registry"]["reachable"]) == (True, False)
        assert health["registry"]["unreachable_since"] <= health["registry"]["last_poll"]
        for _ in range(20):
            assert probabilities(served.predict()) == wanted
    wait_until(lambda: is_up_to_date(served.health()))


@pytest.mark.parametrize("copies", [True, False])
def test_a_start_without_the_registry(served, forked, registered, tmp_path, copies):
    store = tmp_path / "mlflow.db"
    store.write_bytes(b"This was a database once." * 1000)
    if copies:
        copytree(served.folder / "served_models", tmp_path / "served_models")
    with serving(forked, tmp_path, f"sqlite:///{store}") as alone:
        polled = wait_until(lambda: alone.health()["registry"]["last_poll"])
        wait_until(lambda: alone.health()["registry"]["last_poll"] > polled)  # it keeps trying
        health = alone.health()
        assert (health["ready"], health["registry"]["reachable"]) == (copies, False)
        assert alone.client.get("/livez").status_code == 200
        if copies:
            assert (health["status"], health["registry"]["source"]) == ("degraded", "last good copy")
            assert probabilities(alone.predict()) == probabilities(served.predict())
            assert alone.predict().json()["model"]["version"] == registered.versions["good"]
        else:
            assert health["status"] == "waiting"
            assert int(alone.predict().headers["Retry-After"]) >= 1
        store.write_bytes(registered.file.read_bytes())
        wait_until(lambda: alone.health()["status"] == "ok")
        assert alone.predict().json()["predicted_class"] == "red"


def test_a_full_disk_loses_no_prediction(served):
    def kept():
        return served.health()["monitor"]

    served.predict()
    wait_until(lambda: kept()["written"] and not kept()["queued"])
    wanted = probabilities(served.predict())
    wait_until(lambda: not kept()["queued"])
    before = kept()
    limits = resource.prlimit(served.script.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(served.script.pid, resource.RLIMIT_FSIZE, (1, limits[1]))  # no file takes a byte more
    try:
        for _ in range(20):
            assert probabilities(served.predict()) == wanted
        wait_until(lambda: kept()["write_errors"] > before["write_errors"])
        assert kept()["queued"] == 20  # kept, to be tried again
        assert served.health()["ready"]
    finally:
        resource.prlimit(served.script.pid, resource.RLIMIT_FSIZE, limits)
    for _ in range(5):
        served.predict()
    wait_until(lambda: kept()["written"] == before["written"] + 25)  # the disk has space again
    assert kept()["lost"] == before["lost"]

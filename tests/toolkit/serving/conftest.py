"""Shared by tests of the serving package: bundles in memory, and a registry that the test controls."""

import asyncio
from dataclasses import dataclass, replace
from functools import partial

import httpx
import pytest
import torch

from support.colours import COLOURS, ColourNetwork, colour_baseline, colour_card
from toolkit.bundle.program import Bundle, Program
from toolkit.serving.models.engines import TorchEngine
from toolkit.serving.models.manager import LiveModel


@dataclass(frozen=True)
class Version:
    version: int
    digest: str = ""
    name: str = "colours"
    stage: str = "Production"
    run_id: str = "r" * 32


class Constant(torch.nn.Module):
    """A program that returns the same row for each image."""

    def __init__(self, row):
        super().__init__()
        self.row = torch.tensor(row)

    def forward(self, images):
        return self.row.expand(len(images), -1)


class FakeSource:
    """A source of models: ``wanted`` is in the stage, ``bundles`` holds what can be loaded, errors are raised."""

    def __init__(self, bundle):
        self.wanted = Version(1, "v1")
        self.bundles = {
            1: bundle(digest="v1"),
            2: bundle(strength=0.2, digest="v2"),
        }
        self.loads = []
        self.contradiction = ""

    def find(self):
        if isinstance(self.wanted, Exception):
            raise self.wanted
        return self.wanted

    def newest(self):
        return None

    def load(self, release, cache=None):
        self.loads.append(release.version)
        found = self.bundles[release.version]
        if isinstance(found, Exception):
            raise found
        return found

    def put(self, version):
        self.wanted = Version(version, f"v{version}")


@pytest.fixture(scope="session")
def make_bundle():
    """A function that makes a bundle of the colour model, or of a constant ``row``."""

    def make(strength=8.0, digest="v1", row=None, classes=COLOURS):
        program = Program(ColourNetwork(strength)).eval()
        baseline = replace(colour_baseline(program, 30), classes=classes)
        return Bundle(colour_card(classes=classes), baseline, digest, Constant(row) if row else program)

    return make


@pytest.fixture
def make_model(make_bundle):
    """A function that makes a live model, with the arguments of ``make_bundle``."""

    def make(version=1, **words):
        bundle = make_bundle(**words)
        return LiveModel(Version(version, bundle.digest), bundle, TorchEngine(bundle), 1.7e9)

    return make


@pytest.fixture(scope="session")
def make_source(make_bundle):
    return partial(FakeSource, make_bundle)


@pytest.fixture
def source(make_source):
    return make_source()


@pytest.fixture
def ask():
    """A function that sends one request to an ASGI application without a socket."""

    def send(app, method, path, **words):
        async def sent():
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **words)

        return asyncio.run(sent())

    return send

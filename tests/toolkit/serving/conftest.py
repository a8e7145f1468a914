"""What the tests of the service's parts share: bundles in memory and a registry that does what a test says."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from support import COLOURS, ColourNetwork, colour_baseline, colour_card
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
    """A program that gives the same row for each picture."""

    def __init__(self, row: list[float]) -> None:
        super().__init__()
        self.row = torch.tensor(row)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.row.expand(len(pictures), -1)


class FakeSource:
    """A source of models: ``wanted`` is in the stage, ``bundles`` holds what can be loaded, errors are raised."""

    def __init__(self, bundle: Callable[..., Bundle]) -> None:
        self.wanted: Version | Exception = Version(1, "v1")
        self.bundles: dict[int, Bundle | Exception] = {
            1: bundle(digest="v1"),
            2: bundle(strength=0.2, digest="v2"),
        }
        self.loads: list[int] = []
        self.contradiction = ""

    def find(self) -> Version:
        if isinstance(self.wanted, Exception):
            raise self.wanted
        return self.wanted

    def load(self, release: Version, cache: Path | None = None) -> Bundle:
        self.loads.append(release.version)
        found = self.bundles[release.version]
        if isinstance(found, Exception):
            raise found
        return found

    def put(self, version: int) -> None:
        self.wanted = Version(version, f"v{version}")


@pytest.fixture
def make_bundle() -> Callable[..., Bundle]:
    """A function that gives a bundle of the colour model, or of a constant ``row``."""

    def make(
        strength: float = 8.0, digest: str = "v1", row: list[float] | None = None, classes: tuple[str, ...] = COLOURS
    ) -> Bundle:
        program = Program(ColourNetwork(strength)).eval()
        baseline = replace(colour_baseline(program, 30), classes=classes)
        return Bundle(colour_card(classes=classes), baseline, digest, Constant(row) if row else program)

    return make


@pytest.fixture
def make_model(make_bundle: Callable[..., Bundle]) -> Callable[..., LiveModel]:
    """A function that gives a model that answers, of the same words as ``make_bundle``."""

    def make(version: int = 1, **words: Any) -> LiveModel:
        bundle = make_bundle(**words)
        return LiveModel(Version(version, bundle.digest), bundle, TorchEngine(bundle), 1.7e9)

    return make


@pytest.fixture
def source(make_bundle: Callable[..., Bundle]) -> FakeSource:
    return FakeSource(make_bundle)


@pytest.fixture
def ask() -> Callable[..., httpx.Response]:
    """A function that sends one request to an ASGI application without a socket."""

    def send(app: Any, method: str, path: str, **words: Any) -> httpx.Response:
        async def sent() -> httpx.Response:
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **words)

        return asyncio.run(sent())

    return send

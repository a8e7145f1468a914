"""The files of a bundle: program, card, baseline; their digest and verification.

A bundle is an MLflow model folder of the pytorch flavour in ``pt2`` form, plus two files:

    data/model.pt2               the program: uint8 (N, H, W, 3) RGB -> float32 (N, K) probabilities
    extra_files/card.json        classes, image size, settings, metrics, versions
    extra_files/baseline.npz     predictions for the held-out images
    MLmodel, requirements.txt    MLflow's own description

The digest covers every file; it is recorded with the model and checked at every load. No pickle
is ever loaded, and no code of a model is ever run. Write access to a bundle often includes write
access to its digest, so both are searched for in a bundle with the right digest, too.
Nothing here needs torch: ``toolkit.bundle.program`` runs programs.
"""

import hashlib
import platform
import zipfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from toolkit.bundle.archive_check import PICKLE_NAME, as_bundle_error, is_pickle, require_plain_program
from toolkit.bundle.baseline import MAX_SAMPLE, Baseline
from toolkit.errors import BundleError
from toolkit.images.decoding import DECODER_VERSION, RESIZE_RULE
from toolkit.tracking.connection import mlflow

DIGEST_TAG = "bundle_digest"
CARD, BASELINE, PROGRAM = "extra_files/card.json", "extra_files/baseline.npz", "data/model.pt2"
DESCRIPTION = "MLmodel"
NOT_DIGESTED = frozenset({"registered_model_meta"})  # MLflow rewrites it at every download
MAX_SIDE = 4096  # pixels of an input image
MAX_CARD_BYTES = 4 * 2**20  # bytes; a thousand classes take about 30,000
MAX_DESCRIPTION_BYTES = 64 * 2**10  # bytes; MLflow writes about 1,000, and its YAML is slow to read
MAX_ROW_BYTES = 1024  # bytes of an image in a baseline besides its probabilities; 288 are in use


class Measurement(BaseModel):
    """A metric with the number of images that it was measured on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float = Field(ge=0, le=1 + 1e-6)  # a share, within the rounding of a weighted mean
    images: int = Field(ge=0)


class Card(BaseModel):
    """The description of a program: its classes, its training and its measured metrics."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    classes: tuple[str, ...] = Field(min_length=2)  # in the order of the program's outputs
    image_size: int = Field(ge=8, le=MAX_SIDE)  # side of the square input in pixels
    resize_rule: str = RESIZE_RULE
    decoder: str = DECODER_VERSION
    network: str
    settings: dict[str, Any]
    data: dict[str, Any]  # name, fingerprint and sizes of the parts
    metrics: dict[str, Measurement]
    temperature: float = Field(gt=0, allow_inf_nan=False)
    code_version: str
    versions: dict[str, str]

    @field_validator("classes")
    @classmethod
    def _each_once(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        name, times = Counter(classes).most_common(1)[0]
        if times > 1:
            raise ValueError(f"{name!r} is there {times} times")
        return classes


def library_versions() -> dict[str, str]:
    """Versions of Python and the libraries that make programs."""
    names = ("torch", "torchvision", "mlflow", "numpy", "pillow")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def signature_of(card: Card) -> mlflow.models.ModelSignature:
    """Input and output of a program, for MLflow's own tools."""
    images = mlflow.types.TensorSpec(np.dtype("uint8"), (-1, card.image_size, card.image_size, 3))
    probabilities = mlflow.types.TensorSpec(np.dtype("float32"), (-1, len(card.classes)))
    return mlflow.models.ModelSignature(mlflow.types.Schema([images]), mlflow.types.Schema([probabilities]))


def digest_of(folder: Path) -> str:
    """SHA-256 over the names and contents of every file of a bundle, as hexadecimal digits."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name not in NOT_DIGESTED:
            with path.open("rb") as file:
                total.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def verify_bundle(folder: Path, digest: str | None) -> tuple[Card, Baseline]:
    """Verify a bundle without running it, against the digest that the registry or the run recorded.

    A BundleError says in one sentence the first thing that is wrong.
    """
    with as_bundle_error("the bundle"):
        for path in sorted(folder.rglob("*")):  # the digest follows no link to a folder; reading a pipe may not end
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise BundleError(f"the bundle holds {path.name!r}, which is no file of its own")
        for name in (PROGRAM, CARD, BASELINE, DESCRIPTION):
            if not (folder / name).is_file():
                raise BundleError(f"the bundle has no {name}")
        if not digest:
            raise BundleError("no digest was recorded for the bundle, so it cannot be verified")
        if (found := digest_of(folder)) != digest:
            raise BundleError(f"the bundle was altered: its digest is {found[:12]}..., recorded was {digest[:12]}...")
        _require_no_code(folder)
        require_plain_program(folder / PROGRAM)
        card = _read_card(folder / CARD)
        if _read_description(folder / DESCRIPTION).signature != signature_of(card):
            size, classes = card.image_size, len(card.classes)
            raise BundleError(f"the card is of {size} x {size} pixels and {classes} classes, the {DESCRIPTION} is not")
        baseline = _read_baseline(folder / BASELINE, card)
        _require_agreement(card, baseline)
    return card, baseline


def _require_no_code(folder: Path) -> None:
    if (folder / "code").exists():
        raise BundleError("the bundle brings a code folder, and no code that travels with a model is run")
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if PICKLE_NAME.search(path.name.lower()) or (path != folder / PROGRAM and is_pickle(path)):
            raise BundleError(f"the bundle holds {path.name!r}, and no pickle is ever loaded")


def _read_description(path: Path) -> mlflow.models.Model:
    """Read MLflow's description, unless it names code or another program."""
    _require_size(path, MAX_DESCRIPTION_BYTES)
    with as_bundle_error(f"the bundle's {DESCRIPTION}"):
        description = mlflow.models.Model.load(str(path))
        ours, generic = description.flavors["pytorch"], description.flavors["python_function"]
        program = (ours["model_data"], generic["data"], generic["loader_module"])
    if ours.get("code") or generic.get("code") or program != ("data", "data", "mlflow.pytorch"):
        raise BundleError(f"the bundle's {DESCRIPTION} names code, or another program than {PROGRAM}")
    return description


def _read_card(path: Path) -> Card:
    _require_size(path, MAX_CARD_BYTES)
    try:
        return Card.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
    if first["loc"] == ("format",):
        raise BundleError(f"the card has format {first['input']!r:.20}, made by a newer version; this one reads 1")
    place = " at " + ".".join(map(str, first["loc"])) if first["loc"] else ""
    raise BundleError(f"the card is wrong{place}: {first['msg'].removeprefix('Value error, ')}")


def _read_baseline(path: Path, card: Card) -> Baseline:
    """Read a baseline, unless it unpacks into more than the largest sample of the card's classes needs."""
    classes = len(card.classes)
    limit = MAX_SAMPLE * (MAX_ROW_BYTES + 2 * classes) + 4 * classes * max(map(len, card.classes))
    with as_bundle_error("the baseline"):
        with zipfile.ZipFile(path) as archive:
            names, unpacked = archive.namelist(), sum(member.file_size for member in archive.infolist())
        if max(unpacked, path.stat().st_size) > limit:
            raise BundleError(f"the baseline has {unpacked:,} bytes, and {classes} classes need at most {limit:,}")
        if len(set(names)) < len(names):
            raise BundleError("the baseline holds two arrays of one name")
        return Baseline.from_bytes(path.read_bytes())


def _require_agreement(card: Card, baseline: Baseline) -> None:
    """Require that baseline and card agree, and that the baseline holds possible outputs of a program."""
    if baseline.classes != card.classes:
        raise BundleError("card and baseline name different classes")
    if not 1 <= baseline.size <= MAX_SAMPLE:
        raise BundleError(f"a baseline must hold 1 to {MAX_SAMPLE:,} images, this one holds {baseline.size:,}")
    sums = baseline.probabilities.sum(axis=1, dtype=np.float32)
    if baseline.probabilities.min() < 0 or not np.allclose(sums, 1, atol=1e-2):  # float16 rounds by 0.0005
        raise BundleError("the baseline does not hold probabilities")
    if len(set(baseline.hashes.tolist())) < len(baseline.hashes):
        raise BundleError("the baseline holds an image twice")
    for name, column in baseline.statistics.items():
        if not np.isfinite(column).all():
            raise BundleError(f"the baseline's {name} is not finite for every image")
    stated = card.metrics.get("accuracy")
    if stated and stated.images == baseline.size and not _may_be(stated.value, baseline):
        raise BundleError(f"the card's accuracy is {stated.value:.4g}, the baseline's {baseline.accuracy:.4g}")


def _may_be(accuracy: float, baseline: Baseline) -> bool:
    """Whether an accuracy is that of a baseline before float16 made the best classes of some images equal."""
    best = baseline.probabilities == baseline.probabilities.max(axis=1, keepdims=True)  # (N, K)
    right = best[np.arange(baseline.size), baseline.labels]  # (N,), perhaps where others are as good
    surely = right & (best.sum(axis=1) == 1)
    return bool(surely.sum() - 1e-3 <= accuracy * baseline.size <= right.sum() + 1e-3)


def _require_size(path: Path, limit: int) -> None:
    if (found := path.stat().st_size) > limit:
        raise BundleError(f"the bundle's {path.name} has {found:,} bytes, and at most {limit:,} are read")

"""The images that benchmarks train on: a folder of photographs, scikit-learn's digits, or flowers that are drawn."""

import colorsys
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from toolkit.errors import DataError
from toolkit.images.decoding import SUFFIXES
from toolkit.system.metrics import usable_cores

Array = NDArray[np.float32]

CONTEXT = multiprocessing.get_context("forkserver")

CLASSES, SEED = 12, 0  # of what is drawn
SIDES = (500, 667)  # px
QUALITY = 80  # of the JPEGs: about 45 kB each
PETALS = (3, 4, 5, 6, 8, 12)


def listed(folder: Path) -> list[Path]:
    """The images below a folder, class by class; an image's class is the name of the folder that it is in."""
    suffixes = {suffix for suffix in IMG_EXTENSIONS if suffix in SUFFIXES}  # that all sides read
    files = [path for path in folder.rglob("*") if path.suffix.lower() in suffixes]
    if not files:
        raise DataError(f"--data must be a folder with one sub-folder of images a class, got {folder}")
    return sorted(files, key=lambda path: (path.parent.name, path))


def link(files: Sequence[Path], folder: Path) -> Path:
    """Make a folder of some images, one sub-folder a class, by links."""
    for number, file in enumerate(files):
        place = folder / file.parent.name / f"{number:05}{file.suffix.lower()}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(file.resolve())
    return folder


def write_digits(folder: Path, a_class: int) -> Path:
    """Make PNG files of scikit-learn's digits, one sub-folder a class, some of every writer."""
    from sklearn.datasets import load_digits  # a second of import that only this needs

    digits = load_digits()
    for digit in range(10):
        (folder / str(digit)).mkdir(parents=True)
        members = np.flatnonzero(digits.target == digit)
        for index in members[np.arange(a_class) * len(members) // a_class]:
            grey = (digits.images[index] * 255 / 16).round().astype(np.uint8)
            Image.fromarray(grey).save(folder / str(digit) / f"{index:04}.png")
    return folder


def draw(folder: Path, count: int) -> list[Path]:
    """Make JPEG files of flowers, class by class."""
    kinds, numbers = zip(*product(range(CLASSES), range(count // CLASSES)), strict=True)
    with ProcessPoolExecutor(usable_cores(), mp_context=CONTEXT) as pool:
        return list(pool.map(partial(_draw_one, folder), kinds, numbers, chunksize=10))


def _draw_one(folder: Path, kind: int, number: int) -> Path:
    path = folder / f"flower-{kind:02}" / f"{number:05}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    photograph(kind, number).save(path, quality=QUALITY)
    return path


def photograph(kind: int, number: int) -> Image.Image:
    """One to three flowers on a blurred ground: petals and hue depend on the class, all else varies."""
    generator = np.random.default_rng([SEED, kind, number])
    height, width = generator.permutation(SIDES)
    scene = _ground(generator, height, width)  # (H, W, 3) float32, about 0..1
    for _ in range(generator.integers(1, 4)):
        _add_flower(scene, kind, generator)
    scene *= 1 + generator.uniform(-0.35, 0.35) * np.linspace(-1, 1, width, dtype=np.float32)[:, None]  # from one side
    scene += generator.standard_normal((height, width, 1), np.float32) * generator.uniform(0.01, 0.03)  # grain
    light, gamma = generator.uniform(0.6, 1.1), generator.uniform(0.7, 1.4)
    curve = (255 * light * np.linspace(0, 1, 256) ** gamma).clip(0, 255).astype(np.uint8)
    return Image.fromarray(curve[(scene.clip(0, 1) * 255).astype(np.uint8)])


def _ground(generator: np.random.Generator, height: int, width: int) -> Array:
    """A cloudy mixture of two colours, mostly greens."""
    share = np.zeros((height, width), np.float32)
    for cells, weight in ((6, 0.5), (25, 0.3), (100, 0.2)):
        coarse = Image.fromarray(generator.random((cells, cells), np.float32))
        share += weight * np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    first, second = _colour(generator, 0.28, 0.12, 0.7, 0.45), _colour(generator, 0.15, 0.12, 0.5, 0.2)
    return second + (first - second) * share[..., None]


def _add_flower(scene: Array, kind: int, generator: np.random.Generator) -> None:
    """Lay a flower over the scene, turned and seen from the side."""
    height, width, _ = scene.shape
    side = min(height, width)
    radius, turn = side * generator.uniform(0.18, 0.42), generator.uniform(0, 2 * np.pi)
    middle_y, middle_x = np.array([height, width]) / 2 + side * generator.uniform(-0.25, 0.25, 2)
    top, left = max(0, int(middle_y - radius)), max(0, int(middle_x - radius))
    part = scene[top : int(middle_y + radius), left : int(middle_x + radius)]
    y, x = np.ogrid[: part.shape[0], : part.shape[1]]
    across, along = (x + left - middle_x).astype(np.float32), (y + top - middle_y).astype(np.float32)
    u = across * np.cos(turn) + along * np.sin(turn)
    v = (along * np.cos(turn) - across * np.sin(turn)) / generator.uniform(0.6, 1)
    distance, angle = np.hypot(u, v) / radius, np.arctan2(v, u)  # 1 is the tip of a petal
    wave = (1 - np.cos(PETALS[kind % len(PETALS)] * angle)) / 2  # 0 along a petal, 1 between two
    petals = _colour(generator, kind * 5 % CLASSES / CLASSES, 0.045, 0.75, 0.85) * (1 - 0.35 * wave)[..., None]
    heart = _colour(generator, 0.12, 0.05, 0.8, 0.5)
    flower = np.where((distance < generator.uniform(0.15, 0.3))[..., None], heart, petals)
    edge = 1 - generator.uniform(0.4, 0.7) * wave
    part += (flower - part) * ((edge - distance) * radius / 2).clip(0, 1)[..., None]  # two pixels of soft edge


def _colour(generator: np.random.Generator, hue: float, spread: float, saturation: float, value: float) -> Array:
    """float32 (3,) RGB near a colour, all in 0..1; hues go round."""
    lowest, highest = (saturation - 0.3, value - 0.2), (saturation + 0.3, value + 0.2)
    strength, light = generator.uniform(lowest, highest).clip(0, 1)
    return np.array(colorsys.hsv_to_rgb((hue + generator.normal(0, spread)) % 1, strength, light), np.float32)

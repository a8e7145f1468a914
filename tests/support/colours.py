"""A tiny network that is right by construction, images for it, and its bundle's card and baseline.

It separates red, green and blue images by their mean colour. Its weights are written by hand, so
tests have a real, accurate bundle within two seconds and without training.
"""

import io

import numpy as np
import torch
from PIL import Image

from toolkit.bundle.baseline import Baseline
from toolkit.bundle.files import Card, Measurement, library_versions

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

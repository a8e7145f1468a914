"""A saved bundle, and changes of its files for tests of what is refused."""

import json
import os
import zipfile

import numpy as np
import pytest
import torch

from support.colours import COLOURS, colour_baseline, colour_card, colour_pixels
from toolkit.bundle.files import BASELINE, CARD, PROGRAM, digest_of
from toolkit.bundle.program import Program, load_bundle, save_bundle
from toolkit.errors import BundleError

IMAGE_SIZE = 16
UNPICKLED = "no pickle is ever loaded"


class SavedBundle:
    """A bundle on disk that tests copy before they break it."""

    def __init__(self, folder, network, temperature=1.0):
        self.folder, self.network, self.temperature = folder, network, temperature
        program = Program(network, temperature)
        self.card, self.baseline = colour_card(), colour_baseline(program)
        self.digest = save_bundle(folder, program, self.card, self.baseline, run_id="0" * 32, model_id="m-1")


def images(count, seed=0):
    generator = np.random.default_rng(seed)
    return np.stack([colour_pixels(COLOURS[number % 3], IMAGE_SIZE, generator) for number in range(count)])


def refusal(folder, digest=None):
    """Why a bundle is refused, when the digest is not the reason."""
    with pytest.raises(BundleError) as caught:
        load_bundle(folder, digest or digest_of(folder))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250
    return str(caught.value)


def change_card(folder, change):
    card = json.loads((folder / CARD).read_text())
    change(card)
    (folder / CARD).write_text(json.dumps(card))


def change_baseline(folder, **changes):
    """Replace arrays of a baseline, past all that ``Baseline`` itself would refuse."""
    with np.load(folder / BASELINE) as file:
        arrays = dict(file)
    np.savez_compressed(folder / BASELINE, **{**arrays, **changes})


def change_program(folder, changes, method=zipfile.ZIP_STORED):
    """Replace members of a program's archive, or add them."""
    with zipfile.ZipFile(folder / PROGRAM) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(folder / PROGRAM, "w", method) as archive:
        for name, data in {**members, **changes}.items():
            archive.writestr(name, data)


def read_member(folder, name):
    with zipfile.ZipFile(folder / PROGRAM) as archive:
        return archive.read(name).decode()


def replace_program(folder, module, *, free=True):
    """Make a module the program of a bundle, for any number of images or for 2."""
    example = (torch.zeros(2, IMAGE_SIZE, IMAGE_SIZE, 3, dtype=torch.uint8),)
    shapes = ({0: torch.export.Dim.AUTO},) if free else None
    torch.export.save(torch.export.export(module.eval(), example, dynamic_shapes=shapes), folder / PROGRAM)


class Trap:
    """Makes a folder as soon as it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("sprung",)

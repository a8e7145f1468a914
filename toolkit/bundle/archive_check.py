"""A check of a program's archive: only what ``torch.export`` writes for tensors and plain operations.

``torch.export.load`` unpickles objects, and compiles and runs texts of an archive: guards, symbolic
expressions, the names of operations. So each member of an archive, and each text in its graph, must be
one that a program without code of its own has, before torch reads it.
"""

import io
import json
import logging
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from toolkit.errors import BundleError, first_line

MAX_JSON_BYTES = 16 * 2**20  # bytes of JSON; that of a ResNet-18 has 281,000

PICKLE_NAME = re.compile(r"\.(pkl|pickle|pth|pt|joblib)$|^pickle_module_info\.txt$")
PICKLE_HEADS = tuple(bytes((0x80, protocol)) for protocol in range(2, 10))  # older protocols have no header
IMPORTS = {"GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"}  # pickle's opcodes that name what to import
TENSOR_PARTS = {"torch._utils _rebuild_tensor_v2", "torch ByteStorage", "collections OrderedDict"}  # of a uint8 tensor

# Members that torch.export.save of torch 2.14 writes for tensors and plain operations. Others, for objects and
# compiled code, torch.export.load would unpickle or run.
GRAPH, EXAMPLES = "model/models/model.json", "model/data/sample_inputs/model.pt"
TENSORS = ("model/data/weights/model_weights_config.json", "model/data/constants/model_constants_config.json")
MEMBER = re.compile(
    r"model/(data/weights/weight_\d+|data/constants/tensor_\d+|archive_format|archive_version|byteorder"
    r"|\.data/version|\.data/serialization_id)|" + "|".join(map(re.escape, (GRAPH, EXAMPLES, *TENSORS)))
)
EXAMPLE_MEMBER = re.compile(r"archive/[\w./]+")
# The texts in a graph by their key: torch finds operations by name, passes expressions to Python's eval, and writes
# names into code that it compiles.
NAME, TREE, ANYTHING = re.compile(r"[\w.]*"), re.compile(r'[\w ".,:\[\]{}]*'), re.compile(r".*", re.DOTALL)
OPERATION = re.compile(
    r"torch\.ops\.aten\.(?!from_file\b|save\b)\w+\.\w+|torch\.ops\.higher_order\.wrap_with_set_grad_enabled"
    r"|_operator\.(add|sub|mul|floordiv|mod)"
)
EXPRESSION = re.compile(
    r"(Symbol\('\w+', positive=True, integer=True\)|(Integer|Add|Mul|Min|Max|FloorDiv|Mod)\(|-?\d|, |\))*"
)
TEXTS = {"target": OPERATION, "expr_str": EXPRESSION, "in_spec": TREE, "out_spec": TREE} | dict.fromkeys(
    ("stack_trace", "nn_module_stack", "torch_fn", "torch_version"), ANYTHING
)


def require_plain_program(path: Path) -> None:
    """Require that a ``.pt2`` file holds tensors and torch's own operations alone; else name what is not allowed."""
    with as_bundle_error("the program"), zipfile.ZipFile(path) as archive:
        _require_members(archive, MEMBER)
        for name in TENSORS:
            if any(entry["use_pickle"] is not False for entry in _read_json(archive, name)["config"].values()):
                raise BundleError("the program has pickled weights, and no pickle is ever loaded")
        if foreign := _imported_names(archive.read(EXAMPLES)) - TENSOR_PARTS:
            raise BundleError(f"the program's example input is a pickle of more than a tensor: {min(foreign)!r:.60}")
        graph = _read_json(archive, GRAPH)
        if guards := graph.get("guards_code"):
            raise BundleError(f"the program does not take any number of images, since it asks for {guards!r:.60}")
        for key, text in _texts(graph):
            if not TEXTS.get(key, NAME).fullmatch(text):
                raise BundleError(f"the program's graph holds {text!r:.60}, and code that travels with it is not run")


def is_pickle(path: Path) -> bool:
    """Whether a file begins as a pickle, or is what ``torch.save`` writes: a zip archive with a pickle in it."""
    with path.open("rb") as file:
        if file.read(2) in PICKLE_HEADS:
            return True
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(PICKLE_NAME.search(name.lower()) for name in archive.namelist())


@contextmanager
def as_bundle_error(what: str) -> Iterator[None]:
    """Turn what is raised within the block over a damaged file into a ``BundleError``."""
    try:
        yield
    except BundleError:
        raise
    except Exception as error:  # noqa: BLE001  zipfile, json, yaml and MLflow each raise kinds of their own
        raise BundleError(f"{what} cannot be read: {first_line(error)}") from None


@contextmanager
def without_warnings() -> Iterator[None]:
    """Suppress what MLflow and torch.export log and warn at every save and load."""
    loggers = [(logger, logger.level) for logger in (logging.getLogger("mlflow"), logging.getLogger("torch"))]
    for logger, _ in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in loggers:
            logger.setLevel(level)


def _require_members(archive: zipfile.ZipFile, expected: re.Pattern[str]) -> None:
    """One member per name, none compressed, so that none unpacks into more than the file holds."""
    names = archive.namelist()
    for member in archive.infolist():
        if not expected.fullmatch(member.filename) or member.compress_type != zipfile.ZIP_STORED:
            raise BundleError(f"the program holds {member.filename!r:.60}, which torch.export would not write so")
    if len(set(names)) < len(names):
        raise BundleError("the program holds two members of one name")


def _read_json(archive: zipfile.ZipFile, name: str) -> Any:
    if (found := archive.getinfo(name).file_size) > MAX_JSON_BYTES:
        raise BundleError(f"the program's {name} has {found:,} bytes, and at most {MAX_JSON_BYTES:,} are read")
    return json.loads(archive.read(name))


def _imported_names(data: bytes) -> set[str]:
    """The names that loading an archive of ``torch.save`` would import, found without loading it."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        _require_members(archive, EXAMPLE_MEMBER)
        opcodes = pickletools.genops(archive.read("archive/data.pkl"))
        return {str(argument) for opcode, argument, _ in opcodes if opcode.name in IMPORTS}


def _texts(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a JSON value with its key; the keys are texts too."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield "", name
            yield from _texts(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)

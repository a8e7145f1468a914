"""Archives of programs: only tensors and torch's own operations are accepted."""

import io
import json
import pickle
import zipfile

import pytest
import torch

from support.bundles import (
    UNPICKLED,
    Trap,
    change_program,
    read_member,
    refusal,
)
from toolkit.bundle.archive_check import EXAMPLES, GRAPH, TENSORS
from toolkit.bundle.files import PROGRAM


def test_what_is_no_archive_is_refused(copy):
    whole = (copy / PROGRAM).read_bytes()
    for broken in (b"", b"noise", whole[: len(whole) // 2], pickle.dumps(Trap())):
        (copy / PROGRAM).write_bytes(broken)
        assert refusal(copy) == "the program cannot be read: File is not a zip file"


@pytest.mark.parametrize(
    "name",
    [
        "model/data/weights/model.pt",  # what older versions of torch unpickled
        "model/data/constants/custom_obj_0",
        "model/data/constants/opaque_obj_0",
        "model/data/aotinductor/model/model.so",
        "model/models/other.json",
        "model/extra/data.pkl",
        "model/../evil.json",
        "../evil.json",
        "MODEL/models/model.json",
        "evil\n.pkl",
    ],
)
def test_a_member_that_no_tensor_needs_is_refused(copy, name):
    change_program(copy, {name: b"{}"})
    assert refusal(copy) == f"the program holds {name!r}, which torch.export would not write so"


def test_packed_members_and_names_that_are_there_twice_are_refused(copy):
    change_program(copy, {}, zipfile.ZIP_DEFLATED)
    assert refusal(copy).endswith(", which torch.export would not write so")
    change_program(copy, {})
    with zipfile.ZipFile(copy / PROGRAM, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(GRAPH, b"{}")
    assert refusal(copy) == "the program holds two members of one name"


def test_a_member_that_is_missing_or_makes_no_sense_is_refused(copy):
    for name in (GRAPH, EXAMPLES, *TENSORS):
        whole = read_member(copy, name) if name != EXAMPLES else ""
        change_program(copy, {name: b"["})
        assert refusal(copy).startswith("the program cannot be read: ")
        change_program(copy, {name: whole.encode()})
    change_program(copy, {GRAPH: b"[" * 100_000})
    assert refusal(copy).startswith("the program cannot be read: ")


@pytest.mark.parametrize("name", [GRAPH, *TENSORS])
def test_a_text_that_is_too_long_is_not_read(copy, name):
    change_program(copy, {name: b" " * (16 * 2**20 + 1)})
    assert refusal(copy) == f"the program's {name} has 16,777,217 bytes, and at most 16,777,216 are read"


def test_pickled_weights_are_refused(copy, tmp_path):
    """torch.export.load unpickles a weight that the archive calls pickled."""
    config = json.loads(read_member(copy, TENSORS[0]))
    next(iter(config["config"].values()))["use_pickle"] = True
    change_program(copy, {TENSORS[0]: json.dumps(config).encode(), "model/data/weights/weight_0": pickle.dumps(Trap())})
    assert refusal(copy) == f"the program has pickled weights, and {UNPICKLED}"
    assert not (tmp_path / "sprung").exists()


def test_an_example_input_that_is_more_than_a_tensor_is_refused(copy, tmp_path):
    """torch.export.load unpickles whatever it is."""
    buffer = io.BytesIO()
    torch.save(((Trap(),), {}), buffer)
    change_program(copy, {EXAMPLES: buffer.getvalue()})
    assert refusal(copy) == "the program's example input is a pickle of more than a tensor: 'posix mkdir'"
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("found", "instead"),
    [
        # torch hands an expression to sympy, which evaluates it as Python: this one alone makes the folder.
        (r'"expr_str": "', r'"expr_str": "__import__(\"os\").mkdir(\"sprung\") or '),
        (r'"torch.ops.aten.softmax.int"', r'"torch.os.mkdir"'),
        (r'"torch.ops.aten.softmax.int"', r'"torch.ops.aten.from_file.default"'),
        (r'"torch.ops.aten.softmax.int"', r'"torch.ops.aten.save.default"'),
        (r'"torch.ops.aten.softmax.int"', r'"_operator.attrgetter"'),
        (r'"name": "permute"', r'"name": "permute = print(1)\n    permute"'),
        (r'"range_constraints": {', r'"range_constraints": {"print(1)": {"min_val": 2, "max_val": null}, '),
        (r'"context": \"[]\"', r'"context": \"[\\\"print(1)\\\"]\"'),
    ],
)
def test_a_graph_that_brings_code_is_refused(copy, tmp_path, found, instead):
    graph = read_member(copy, GRAPH)
    found, instead = (text.replace(r'"context": \"', r"\"context\": \"") for text in (found, instead))
    assert found in graph
    change_program(copy, {GRAPH: graph.replace(found, instead, 1).encode()})
    message = refusal(copy)
    assert message.startswith("the program's graph holds ")
    assert message.endswith(", and code that travels with it is not run")
    assert not (tmp_path / "sprung").exists()

"""The binary tensor data extension of the Open Inference Protocol: JSON, then tensors as plain bytes.

UINT8 and FP32 (little endian) are in row-major order; each element of BYTES has its length before it, as an unsigned
number of 4 bytes, little endian. The header ``Inference-Header-Content-Length`` is the length of the JSON.
"""

import json
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from toolkit.serving.problems import INVALID, MALFORMED, Problem

EXTENSION = "binary_tensor_data"
HEADER = "Inference-Header-Content-Length"
LENGTH = struct.Struct("<I")


def split_body(body: bytes, length: str | None) -> tuple[bytes, bytes]:
    """The JSON of a request, and the bytes after it; ``length`` is the header's value, without which all is JSON.

    >>> split_body(b'{}abc', "2")
    (b'{}', b'abc')
    """
    if length is None:
        return body, b""
    if not (length.isascii() and length.isdigit() and len(length) < 20 and int(length) <= len(body)):
        raise Problem(MALFORMED, f"{HEADER} must be the length of the JSON in bytes, at most that of the body")
    return body[: int(length)], body[int(length) :]


def split_elements(data: bytes, count: int) -> list[bytes]:
    """The ``count`` elements of a tensor of BYTES.

    >>> split_elements(b"\\x02\\0\\0\\0ab\\0\\0\\0\\0", 2)
    [b'ab', b'']
    """
    found: list[bytes] = []
    end = 0
    while end < len(data) and len(found) < count:
        start = end + LENGTH.size
        if start > len(data):
            break
        end = start + LENGTH.unpack_from(data, end)[0]
        found.append(data[start:end])
    if end != len(data) or len(found) != count:
        raise Problem(INVALID, f"inputs.0: the bytes must be {count} elements, each with its length before it")
    return found


def join_body(response: dict[str, Any], is_binary: Sequence[bool]) -> tuple[bytes, int]:
    """The body of a response with some of its outputs as bytes, and the length of its JSON.

    >>> outputs = [{"name": "label", "datatype": "BYTES", "shape": [1], "data": ["cat"]}]
    >>> body, length = join_body({"outputs": outputs}, [True])
    >>> body[:length], body[length:]
    (b'{"outputs": [{"name": "label", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 7}}]}', b'\\x03\\x00\\x00\\x00cat')
    """  # noqa: E501  the JSON is one line
    tensors, data = [], b""
    for tensor, as_bytes in zip(response["outputs"], is_binary, strict=True):
        if as_bytes:
            packed = _packed(tensor["datatype"], tensor["data"])
            rest = {name: value for name, value in tensor.items() if name != "data"}
            tensors.append(rest | {"parameters": {"binary_data_size": len(packed)}})
            data += packed
        else:
            tensors.append(tensor)
    head = json.dumps(response | {"outputs": tensors}).encode()
    return head + data, len(head)


def _packed(datatype: str, values: Sequence[Any]) -> bytes:
    if datatype == "FP32":
        return np.asarray(values, "<f4").tobytes()
    texts = [value.encode() for value in values]
    return b"".join(LENGTH.pack(len(text)) + text for text in texts)

"""The binary tensor data extension of the Open Inference Protocol: a JSON head, then tensors as plain bytes.

Bytes of UINT8 and of FP32 (little endian) are in row-major order; each element of BYTES is its length
as an unsigned number of 4 bytes, little endian, and then itself. ``Inference-Header-Content-Length``
says how long the head is.
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


def split(body: bytes, length: str | None) -> tuple[bytes, bytes]:
    """The JSON of a request, and what follows it.

    Parameters
    ----------
    body
        The request's.
    length
        The header; without it all is JSON.

    Raises
    ------
    Problem
        400 for a header that is no length within the body.

    Examples
    --------
    >>> split(b'{}abc', "2")
    (b'{}', b'abc')
    """
    if length is None:
        return body, b""
    if not (length.isascii() and length.isdigit() and len(length) < 20 and int(length) <= len(body)):
        raise Problem(MALFORMED, f"{HEADER} must be the length of the JSON in bytes, at most that of the body")
    return body[: int(length)], body[int(length) :]


def elements(data: bytes, count: int) -> list[bytes]:
    """The elements of a tensor of BYTES.

    Raises
    ------
    Problem
        422 when there are not exactly so many.

    Examples
    --------
    >>> elements(b"\\x02\\0\\0\\0ab\\0\\0\\0\\0", 2)
    [b'ab', b'']
    """
    found: list[bytes] = []
    place = 0
    while place < len(data) and len(found) < count:
        start = place + LENGTH.size
        if start > len(data):
            break
        place = start + LENGTH.unpack_from(data, place)[0]
        found.append(data[start:place])
    if place != len(data) or len(found) != count:
        raise Problem(INVALID, f"inputs.0: the bytes must be {count} elements, each with its length before it")
    return found


def joined(answer: dict[str, Any], wanted: Sequence[bool]) -> tuple[bytes, int]:
    """An answer with some of its outputs as bytes; and the length of its JSON.

    Parameters
    ----------
    answer
        As it is in JSON; each of its ``outputs`` has ``datatype`` and ``data``.
    wanted
        Which of the outputs are to be bytes.

    Examples
    --------
    >>> outputs = [{"name": "label", "datatype": "BYTES", "shape": [1], "data": ["cat"]}]
    >>> body, length = joined({"outputs": outputs}, [True])
    >>> body[:length], body[length:]
    (b'{"outputs": [{"name": "label", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 7}}]}', b'\\x03\\x00\\x00\\x00cat')
    """  # noqa: E501  the head is one line
    tensors, data = [], b""
    for tensor, as_bytes in zip(answer["outputs"], wanted, strict=True):
        if as_bytes:
            packed = _packed(tensor["datatype"], tensor["data"])
            rest = {name: value for name, value in tensor.items() if name != "data"}
            tensors.append(rest | {"parameters": {"binary_data_size": len(packed)}})
            data += packed
        else:
            tensors.append(tensor)
    head = json.dumps(answer | {"outputs": tensors}).encode()
    return head + data, len(head)


def _packed(datatype: str, values: Sequence[Any]) -> bytes:
    if datatype == "FP32":
        return np.asarray(values, "<f4").tobytes()
    texts = [value.encode() for value in values]
    return b"".join(LENGTH.pack(len(text)) + text for text in texts)

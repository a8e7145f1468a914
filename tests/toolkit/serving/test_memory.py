"""One pool of memory: glibc itself is asked how many there are."""

import os
import subprocess
import sys

import pytest

from support import ROOT

POOLS = """
import ctypes, os, sys, tempfile, threading
from toolkit.serving.memory import share_one_pool

said = share_one_pool() if "share" in sys.argv else None
libc = ctypes.CDLL(None)
libc.fopen.restype = libc.malloc.restype = ctypes.c_void_p
ready = threading.Barrier(9)

def take():
    libc.malloc(ctypes.c_size_t(1000))
    ready.wait(600)

threads = [threading.Thread(target=take) for _ in range(8)]
for thread in threads:
    thread.start()
ready.wait(600)
with tempfile.NamedTemporaryFile() as file:
    stream = ctypes.c_void_p(libc.fopen(file.name.encode(), b"w"))
    libc.malloc_info(0, stream)
    libc.fclose(stream)
    print(said, file.read().count(b"<heap nr="))
"""


def pools(*arguments: str, **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    return subprocess.run(
        [sys.executable, "-c", POOLS, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=kept | {"PYTHONPATH": str(ROOT), **environment},
    ).stdout.strip()


@pytest.mark.skipif(
    "glibc" not in os.confstr("CS_GNU_LIBC_VERSION") if hasattr(os, "confstr") else True, reason="glibc"
)
def test_threads_share_one_pool_unless_the_user_has_decided_otherwise():
    assert int(pools().split()[1]) > 1
    assert pools("share") == "True 1"
    said, count = pools("share", MALLOC_ARENA_MAX="4").split()
    assert said == "False"
    assert 1 < int(count) <= 4

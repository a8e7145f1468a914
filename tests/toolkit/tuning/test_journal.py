"""Entries of a journal survive, whatever becomes of the process, the disk or the file."""

import json
import os
import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from support.disk import full_disk
from toolkit.errors import DataError, SettingsError
from toolkit.tuning.journal import Journal, read_journal, write_whole

ABOUT = {"seed": 0, "space": {"epochs": {"low": 3, "high": 6}}}
ENTRIES = [{"proposal": {"number": 0}}, {"result": {"number": 0, "state": "complete"}}, {"note": 'Gänse, "雁"\r\n\x00'}]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "studies" / "digits-1" / "journal.jsonl"


@pytest.fixture
def written(path):
    """A journal with three entries, closed."""
    with Journal(path, ABOUT) as journal:
        for entry in ENTRIES:
            journal.append(entry)
    return path


def entries_of(path):
    """Entries that a process finds when it opens it."""
    with Journal(path) as journal:
        return journal.entries


# --- what is written comes back -----------------------------------------------------------------


def test_entries_come_back_in_order(written):
    with Journal(written) as journal:
        assert (journal.about, journal.entries) == (ABOUT, ENTRIES)
        journal.append({"more": [1, 2]})
        assert journal.entries == [*ENTRIES, {"more": [1, 2]}]
    assert read_journal(written) == (ABOUT, [*ENTRIES, {"more": [1, 2]}])


def test_a_journal_is_json_lines(written):
    content = written.read_bytes()
    assert content.isascii()
    assert [json.loads(line) for line in content.splitlines()] == [{"format": 1, "about": ABOUT}, *ENTRIES]


def test_a_new_journal_creates_its_folders_and_leaves_no_scratch_files(written):
    assert sorted(entry.name for entry in written.parent.iterdir()) == ["journal.jsonl", "journal.lock"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@budget(max_examples=40)
@given(about=st.dictionaries(st.text(), VALUES), entries=st.lists(st.dictionaries(st.text(), VALUES), max_size=4))
def test_any_plain_values_come_back(about, entries, tmp_path_factory):
    """Numbers to the last digit, and whatever a text may hold."""
    path = tmp_path_factory.mktemp("any") / "journal.jsonl"
    with Journal(path, about) as journal:
        for entry in entries:
            journal.append(entry)
        assert (journal.about, journal.entries) == (about, entries)
    assert repr(read_journal(path)) == repr((about, entries))


# --- a process ends at any moment ---------------------------------------------------------------


def test_an_unfinished_last_line_is_removed(written):
    whole = written.read_bytes()
    last = whole.rfind(b"\n", 0, -1) + 1
    for length in range(last, len(whole)):
        written.write_bytes(whole[:length])
        assert read_journal(written) == (ABOUT, ENTRIES[:-1])
        assert written.stat().st_size == length, "reading changes nothing"
        with Journal(written) as journal:
            assert journal.entries == ENTRIES[:-1]
            journal.append(ENTRIES[-1])
        assert written.read_bytes() == whole


APPEND_FOR_EVER = """
import sys
from pathlib import Path
from toolkit.tuning.journal import Journal

with Journal(Path(sys.argv[1])) as journal:
    number = len(journal.entries)
    while True:
        journal.append({"number": number, "padding": "x" * 20_000})
        print(number, flush=True)
        number += 1
"""


def process(script, path):
    return subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True)


def test_kill_9_loses_no_entry(path):
    """A process says the number of each entry after it was written, and is killed in the middle of its work."""
    Journal(path, ABOUT).close()
    reported = -1
    for lines in (1, 7, 30):
        with process(APPEND_FOR_EVER, path) as writer:
            assert writer.stdout is not None
            for _ in range(lines):
                reported = int(writer.stdout.readline())
            writer.kill()
            reported = int(([str(reported), *writer.stdout.read().split()])[-1])
        assert writer.returncode == -signal.SIGKILL
        numbers = [entry["number"] for entry in entries_of(path)]
        assert numbers == list(range(len(numbers)))
        assert reported + 1 <= len(numbers) <= reported + 2, "one more may have been written and not been reported"


def test_an_entry_is_on_disk_when_append_returns(path, monkeypatch):
    """All of it was in the file when the system was last asked to have the file on disk."""
    on_disk = []
    sync = os.fsync

    def noting(handle):
        sync(handle)
        on_disk.append((os.fstat(handle).st_ino, os.fstat(handle).st_size))

    monkeypatch.setattr(os, "fsync", noting)
    with Journal(path, ABOUT) as journal:
        found = path.stat()
        assert on_disk == [
            (found.st_ino, found.st_size),  # the file
            (path.parent.stat().st_ino, path.parent.stat().st_size),  # its name
        ]
        for entry in ENTRIES:
            journal.append(entry)
            assert on_disk[-1] == (found.st_ino, path.stat().st_size)
    assert len(on_disk) == 2 + len(ENTRIES)


# --- several processes --------------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from toolkit.tuning.journal import Journal

with Journal(Path(sys.argv[1])) as journal:
    journal.append({"mine": True})
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_may_only_read(written):
    incumbent = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(written)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with incumbent:
        assert incumbent.stdout is not None
        assert incumbent.stdout.readline() == "held\n"
        for about in (None, ABOUT):
            with pytest.raises(SettingsError) as caught:
                Journal(written, about)
            reason = f"the journal {written} is being written by process {incumbent.pid}; wait for it or stop it"
            assert str(caught.value) == reason
        assert read_journal(written) == (ABOUT, [*ENTRIES, {"mine": True}])
        incumbent.communicate()
    assert entries_of(written) == [*ENTRIES, {"mine": True}]


def test_a_failed_open_releases_the_lock(written):
    """Otherwise a corrected second attempt would be refused."""
    whole = written.read_bytes()
    written.write_bytes(b"[]\n" + whole)
    with pytest.raises(DataError):
        Journal(written)
    written.write_bytes(whole)
    with pytest.raises(SettingsError):
        Journal(written, ABOUT)
    assert entries_of(written) == ENTRIES


# --- what there must be, and what not -----------------------------------------------------------


def test_an_existing_journal_is_not_overwritten(written):
    before = written.read_bytes()
    with pytest.raises(SettingsError) as caught:
        Journal(written, {"seed": 1})
    assert str(caught.value) == f"there is a journal {written} already"
    assert written.read_bytes() == before


def test_a_missing_journal_is_not_opened(path, tmp_path):
    for missing in (path, tmp_path):
        with pytest.raises(SettingsError) as caught:
            Journal(missing)
        assert str(caught.value) == f"there is no journal {missing}"
    assert list(tmp_path.iterdir()) == [], "the attempt leaves nothing behind"


# --- what cannot be read ------------------------------------------------------------------------

FIRST = b'{"format": 1, "about": {}}\n'


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is not a journal of this version"),
        (b"\n", "line 1 is broken"),
        (FIRST[:-1], "it is not a journal of this version"),  # it was renamed when it was whole
        (b'{"format": 2, "about": {}}\n', "it is not a journal of this version"),
        (b'{"format": 1}\n', "it is not a journal of this version"),
        (b'{"format": 1, "about": 5}\n', "it is not a journal of this version"),
        (b'{"proposal": {}}\n', "it is not a journal of this version"),
        (b"[1, 2]\n", "line 1 is broken"),
        (b"PK\x03\x04\xff\xfe\n", "line 1 is broken"),
        (FIRST + b'{"proposal": 1}\n{"result"\n{"proposal": 2}\n', "line 3 is broken"),
        (FIRST + b'{"proposal": 1}\n\n{"proposal": 2}\n', "line 3 is broken"),
        (FIRST + b'{"proposal": 1}\n{"result": 1}{"proposal": 2}\n', "line 3 is broken"),
        (FIRST + b'{"proposal": "\xff"}\n', "line 2 is broken"),
        (FIRST + b"\x00" * 20 + b"\n", "line 2 is broken"),
        (FIRST + b"7\n", "line 2 is broken"),
        (FIRST + b"[" * 100_000 + b"\n", "line 2 is broken"),
        (FIRST + b"1" * 5_000 + b"\n", "line 2 is broken"),
    ],
)
def test_a_broken_journal_is_refused_and_left_alone(content, reason, tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(content)
    for read in (Journal, read_journal):
        with pytest.raises(DataError) as caught:
            read(path)
        assert str(caught.value) == f"the journal {path} cannot be read: {reason}"
    assert path.read_bytes() == content


def test_an_unreadable_file_is_refused(tmp_path):
    for path, reason in (
        (tmp_path, "Is a directory"),
        (tmp_path / "missing", "No such file or directory"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        with pytest.raises(DataError) as caught:
            read_journal(path)
        assert str(caught.value) == f"the journal {path} cannot be read: {reason}"


# --- what cannot be written ---------------------------------------------------------------------


def test_an_unwritable_place_is_refused(tmp_path):
    (tmp_path / "file").write_text("taken")
    (tmp_path / "busy" / "journal.lock").mkdir(parents=True)
    (tmp_path / "half" / "journal.partial").mkdir(parents=True)
    for folder, reason in (("file", "File exists"), ("busy", "Is a directory"), ("half", "Is a directory")):
        path = tmp_path / folder / "journal.jsonl"
        with pytest.raises(DataError) as caught:
            Journal(path, ABOUT)
        assert str(caught.value) == f"the journal {path} cannot be written: {reason}"
    for about in (ABOUT, None):
        with pytest.raises(DataError, match=r"cannot be written: File name too long$"):
            Journal(tmp_path / ("x" * 300) / "journal.jsonl", about)


def test_a_full_disk_costs_no_entry(written):
    """Half of the line fits. When there is space again the journal continues, with whole lines only."""
    before = written.read_bytes()
    with Journal(written) as journal:
        for _ in range(2):
            with full_disk(len(before) + 50), pytest.raises(DataError) as caught:
                journal.append({"padding": "x" * 100})
            assert str(caught.value) == f"the journal {written} cannot be written: File too large"
            assert written.read_bytes() == before
        assert journal.entries == ENTRIES
        journal.append({"space": "again"})
    assert entries_of(written) == [*ENTRIES, {"space": "again"}]


def test_a_full_disk_is_reported_once(written):
    """To close the journal tries nothing again, and lets it go."""
    with (
        full_disk(written.stat().st_size),
        pytest.raises(DataError, match=r"File too large$"),
        Journal(written) as full,
    ):
        full.append({"padding": "x" * 100})
    assert entries_of(written) == ENTRIES


def test_no_journal_is_created_on_a_full_disk(path):
    with full_disk(50), pytest.raises(DataError) as caught:
        Journal(path, {"padding": "x" * 1_000})
    assert str(caught.value) == f"the journal {path} cannot be written: File too large"
    assert [entry.name for entry in path.parent.iterdir()] == ["journal.lock"]
    Journal(path, ABOUT).close()
    assert read_journal(path) == (ABOUT, [])


def test_write_whole_replaces_a_file_or_leaves_it(tmp_path):
    path = tmp_path / "file.npy"
    write_whole(path, b"first")
    (tmp_path / "file.partial").write_bytes(b"what a killed process left behind")
    write_whole(path, b"second")
    with full_disk(10_000), pytest.raises(OSError, match="File too large"):
        write_whole(path, b"x" * 20_000)
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == {"file.npy": b"second"}

"""What a journal has taken is there afterwards, whatever becomes of the process, the disk or the file."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from support.disk import full_disk
from toolkit.errors import DataError, SettingsError
from toolkit.tuning.journal import Journal, read_journal, write_whole

ABOUT = {"seed": 0, "space": {"epochs": {"low": 3, "high": 6}}}
ENTRIES = [{"asked": {"number": 0}}, {"told": {"number": 0, "state": "complete"}}, {"note": 'Gänse, "雁"\r\n\x00'}]


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
    """What a process that opens it finds."""
    with Journal(path) as journal:
        return journal.entries


# --- what is written comes back -----------------------------------------------------------------


def test_what_is_appended_comes_back_in_order(written):
    with Journal(written) as journal:
        assert (journal.about, journal.entries) == (ABOUT, ENTRIES)
        journal.append({"more": [1, 2]})
        assert journal.entries == [*ENTRIES, {"more": [1, 2]}]
    assert read_journal(written) == (ABOUT, [*ENTRIES, {"more": [1, 2]}])


def test_it_is_lines_of_json_that_other_programs_read(written):
    content = written.read_bytes()
    assert content.isascii()
    assert [json.loads(line) for line in content.splitlines()] == [{"format": 1, "about": ABOUT}, *ENTRIES]


def test_it_begins_in_folders_that_it_makes_and_leaves_no_litter(written):
    assert sorted(entry.name for entry in written.parent.iterdir()) == ["journal.jsonl", "journal.lock"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@budget(max_examples=40, deadline=None)
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


def test_a_last_line_torn_at_any_byte_is_taken_away_and_the_rest_is_kept(written):
    whole = written.read_bytes()
    last = whole.rfind(b"\n", 0, -1) + 1
    for length in range(last, len(whole)):
        written.write_bytes(whole[:length])
        assert read_journal(written) == (ABOUT, ENTRIES[:-1])
        assert written.stat().st_size == length, "who only reads changes nothing"
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


def test_kill_9_loses_nothing_that_was_written(path):
    """A process says the number of each entry after it was written, and is killed in the middle of its work."""
    Journal(path, ABOUT).close()
    told = -1
    for lines in (1, 7, 30):
        with process(APPEND_FOR_EVER, path) as writer:
            assert writer.stdout is not None
            for _ in range(lines):
                told = int(writer.stdout.readline())
            writer.kill()
            told = int(([str(told), *writer.stdout.read().split()])[-1])
        assert writer.returncode == -signal.SIGKILL
        numbers = [entry["number"] for entry in entries_of(path)]
        assert numbers == list(range(len(numbers)))
        assert told + 1 <= len(numbers) <= told + 2, "one more may have been written and not been told of"


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


def test_the_second_of_two_processes_is_refused_in_one_line_and_may_read(written):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(written)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for about in (None, ABOUT):
            with pytest.raises(SettingsError) as caught:
                Journal(written, about)
            reason = f"the journal {written} is being written by process {holder.pid}; wait for it or stop it"
            assert str(caught.value) == reason
        assert read_journal(written) == (ABOUT, [*ENTRIES, {"mine": True}])
        holder.communicate()
    assert entries_of(written) == [*ENTRIES, {"mine": True}]


def test_what_could_not_be_opened_is_not_held(written):
    """Or who corrects a mistake would wait for himself."""
    whole = written.read_bytes()
    written.write_bytes(b"[]\n" + whole)
    with pytest.raises(DataError):
        Journal(written)
    written.write_bytes(whole)
    with pytest.raises(SettingsError):
        Journal(written, ABOUT)
    assert entries_of(written) == ENTRIES


# --- what there must be, and what not -----------------------------------------------------------


def test_one_that_is_there_is_not_begun_again(written):
    before = written.read_bytes()
    with pytest.raises(SettingsError) as caught:
        Journal(written, {"seed": 1})
    assert str(caught.value) == f"there is a journal {written} already"
    assert written.read_bytes() == before


def test_one_that_is_not_there_is_not_opened(path, tmp_path):
    for missing in (path, tmp_path):
        with pytest.raises(SettingsError) as caught:
            Journal(missing)
        assert str(caught.value) == f"there is no journal {missing}"
    assert list(tmp_path.iterdir()) == [], "to look for it leaves nothing behind"


# --- what cannot be read ------------------------------------------------------------------------

FIRST = b'{"format": 1, "about": {}}\n'


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is no journal of this version"),
        (b"\n", "line 1 is broken"),
        (FIRST[:-1], "it is no journal of this version"),  # it was renamed when it was whole
        (b'{"format": 2, "about": {}}\n', "it is no journal of this version"),
        (b'{"format": 1}\n', "it is no journal of this version"),
        (b'{"format": 1, "about": 5}\n', "it is no journal of this version"),
        (b'{"asked": {}}\n', "it is no journal of this version"),
        (b"[1, 2]\n", "line 1 is broken"),
        (b"PK\x03\x04\xff\xfe\n", "line 1 is broken"),
        (FIRST + b'{"asked": 1}\n{"told"\n{"asked": 2}\n', "line 3 is broken"),
        (FIRST + b'{"asked": 1}\n\n{"asked": 2}\n', "line 3 is broken"),
        (FIRST + b'{"asked": 1}\n{"told": 1}{"asked": 2}\n', "line 3 is broken"),
        (FIRST + b'{"asked": "\xff"}\n', "line 2 is broken"),
        (FIRST + b"\x00" * 20 + b"\n", "line 2 is broken"),
        (FIRST + b"7\n", "line 2 is broken"),
        (FIRST + b"[" * 100_000 + b"\n", "line 2 is broken"),
        (FIRST + b"1" * 5_000 + b"\n", "line 2 is broken"),
    ],
)
def test_what_is_no_whole_journal_is_refused_in_one_line_and_left_alone(content, reason, tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(content)
    for look in (Journal, read_journal):
        with pytest.raises(DataError) as caught:
            look(path)
        assert str(caught.value) == f"the journal {path} cannot be read: {reason}"
    assert path.read_bytes() == content


def test_what_cannot_be_read_at_all_says_why(tmp_path):
    for path, reason in (
        (tmp_path, "Is a directory"),
        (tmp_path / "missing", "No such file or directory"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        with pytest.raises(DataError) as caught:
            read_journal(path)
        assert str(caught.value) == f"the journal {path} cannot be read: {reason}"


# --- what cannot be written ---------------------------------------------------------------------


def test_a_place_where_nothing_can_be_written_is_one_line(tmp_path):
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


def test_a_full_disk_is_one_line_and_costs_no_entry(written):
    """Half of the line fits. When there is room again the journal goes on, with whole lines only."""
    before = written.read_bytes()
    with Journal(written) as journal:
        for _ in range(2):
            with full_disk(len(before) + 50), pytest.raises(DataError) as caught:
                journal.append({"padding": "x" * 100})
            assert str(caught.value) == f"the journal {written} cannot be written: File too large"
            assert written.read_bytes() == before
        assert journal.entries == ENTRIES
        journal.append({"room": "again"})
    assert entries_of(written) == [*ENTRIES, {"room": "again"}]


def test_a_disk_that_stays_full_is_said_once(written):
    """To close the journal tries nothing again, and lets it go."""
    with (
        full_disk(written.stat().st_size),
        pytest.raises(DataError, match=r"File too large$"),
        Journal(written) as full,
    ):
        full.append({"padding": "x" * 100})
    assert entries_of(written) == ENTRIES


def test_on_a_full_disk_none_is_begun(path):
    with full_disk(50), pytest.raises(DataError) as caught:
        Journal(path, {"padding": "x" * 1_000})
    assert str(caught.value) == f"the journal {path} cannot be written: File too large"
    assert [entry.name for entry in path.parent.iterdir()] == ["journal.lock"]
    Journal(path, ABOUT).close()
    assert read_journal(path) == (ABOUT, [])


def test_a_file_is_replaced_by_a_whole_one_or_not_at_all(tmp_path):
    path = tmp_path / "file.npy"
    write_whole(path, b"first")
    (tmp_path / "file.partial").write_bytes(b"what a killed process left behind")
    write_whole(path, b"second")
    with full_disk(10_000), pytest.raises(OSError, match="File too large"):
        write_whole(path, b"x" * 20_000)
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == {"file.npy": b"second"}


@contextmanager
def nobody():
    """Root may read and write everywhere: be somebody else for a while."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(before)


def test_a_folder_that_is_closed_to_us_is_one_line(written):
    written.parent.chmod(0)
    try:
        with nobody():
            for about in (None, ABOUT):
                with pytest.raises(DataError) as caught:
                    Journal(written, about)
                assert str(caught.value) == f"the journal {written} cannot be written: Permission denied"
            with pytest.raises(DataError) as caught:
                read_journal(written)
            assert str(caught.value) == f"the journal {written} cannot be read: Permission denied"
    finally:
        written.parent.chmod(0o700)

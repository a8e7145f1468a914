"""What scripts print."""

import io
import re
import sys
import time

import pytest
from tqdm import tqdm

from toolkit.cli import terminal
from toolkit.cli.terminal import bar_label, echo, muted, on_terminal, progress, table


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_line_is_printed_at_once_and_to_standard_output(capsys):
    echo("epoch 1")
    echo("épo|que 2")
    assert capsys.readouterr() == ("epoch 1\népo|que 2\n", "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_name_can_be_said_on_any_terminal(encoding, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, newline=""))
    echo("été\n猫 \x1b[2J caf\udce9")
    printed = raw.getvalue().decode(encoding)
    cat = "猫" if encoding == "utf-8" else "\\u732b"
    accents = "\\xe9t\\xe9" if encoding == "ascii" else "été"
    assert printed == f"{accents}\n{cat} \\x1b[2J caf\\xe9\n"


def test_a_line_leaves_a_progress_bar_whole(monkeypatch):
    """The bar is wiped before the line and drawn again after it."""
    screened = Terminal()
    monkeypatch.setattr(sys, "stdout", screened)
    with tqdm(total=10, desc="training", file=screened, mininterval=0) as progress:
        progress.update(5)
        echo("epoch 1")
    screen = []
    for line in screened.getvalue().split("\n"):
        screen += [part for part in line.split("\r") if part.strip()]
    assert "epoch 1" in screen
    assert all(part.startswith("training:") for part in screen if part != "epoch 1")
    after = screen[screen.index("epoch 1") + 1 :]
    assert any(" 5/10 " in part for part in after)


def test_bars_are_for_terminals(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert on_terminal()
    assert bar_label("fold 1/5") == "fold 1/5"
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert not on_terminal()
    assert bar_label("fold 1/5") is None


def test_a_rank_that_was_left_over_silences_nothing(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    echo("epoch 1")
    with muted():
        echo("epoch 2")
    assert capsys.readouterr().out == "epoch 1\n"


@pytest.fixture
def decode(monkeypatch):
    """A function that shows the progress of ten steps that take so many seconds each, by a clock of its own."""
    now = 1e9
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(terminal, "_last_line", 0.0)
    monkeypatch.setattr(terminal, "REFRESH_S", 0.0)

    def decode(seconds, label="decoding"):
        nonlocal now
        with progress(label, 12, "images", initial=2) as shown:
            for _ in range(10):
                now += seconds
                shown.update()

    return decode


def test_progress_in_a_log_is_a_line_after_a_silence(decode, capsys):
    decode(2.9)
    assert capsys.readouterr() == ("", ""), "what is done soon is no line"
    decode(10.0)
    out, err = capsys.readouterr()
    assert err == ""
    assert re.sub(r"\d\d:\d\d left", "... left", out).splitlines() == [
        f"decoding: {done} of 12 images, {done / 12:.0%}".replace("%", " %, ... left") for done in (5, 8, 11)
    ]
    decode(10.0, label=None)
    with muted():
        decode(10.0)
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_progress_is_a_bar(monkeypatch, decode):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    decode(0.1)
    assert "decoding:  17%|" in screen.getvalue()
    assert "images/s]" in screen.getvalue()


def test_a_table_puts_numbers_to_the_right_and_words_to_the_left():
    assert table(["network", "size", "rate"], [["simple_cnn", 32, "1e-05"], ["resnet18", 224, "-0.5"]]) == (
        "network     size   rate\n"
        "simple_cnn    32  1e-05\n"
        "resnet18     224   -0.5"
    )  # fmt: skip


def test_gaps_in_a_column_of_numbers_leave_it_one():
    assert table(["mean", "note"], [["0.5", "a"], ["-", ""], ["", "b"], ["12.25 %", "c"]]).splitlines() == [
        "   mean  note",
        "    0.5  a",
        "      -",
        "         b",
        "12.25 %  c",
    ]


def test_a_table_without_rows_has_its_headings():
    assert table(["a", "bc"], []) == "a  bc"


def test_within_a_block_nothing_is_said(capsys):
    with muted(), muted(wanted=False):
        echo("inside")
    with pytest.raises(KeyError), muted():
        raise KeyError
    with muted(wanted=False):
        echo("after")
    assert capsys.readouterr().out == "after\n"

"""What scripts print."""

import io
import sys

import pytest
from tqdm import tqdm

from toolkit.terminal import bar, on_terminal, say, silent, table


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_is_printed_at_once_and_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    say("epoch 1")
    say("épo|que 2")
    assert capsys.readouterr() == ("epoch 1\népo|que 2\n", "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_name_can_be_said_on_any_terminal(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, newline=""))
    say("été\n猫 \x1b[2J caf\udce9")
    told = raw.getvalue().decode(encoding)
    cat = "猫" if encoding == "utf-8" else "\\u732b"
    accents = "\\xe9t\\xe9" if encoding == "ascii" else "été"
    assert told == f"{accents}\n{cat} \\x1b[2J caf\\xe9\n"


def test_a_line_leaves_a_progress_bar_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar is wiped before the line and drawn again after it."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    with tqdm(total=10, desc="training", file=terminal, mininterval=0) as progress:
        progress.update(5)
        say("epoch 1")
    screen: list[str] = []
    for line in terminal.getvalue().split("\n"):
        screen += [part for part in line.split("\r") if part.strip()]
    assert "epoch 1" in screen
    assert all(part.startswith("training:") for part in screen if part != "epoch 1")
    after = screen[screen.index("epoch 1") + 1 :]
    assert any(" 5/10 " in part for part in after)


def test_bars_are_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert on_terminal()
    assert bar("fold 1/5") == "fold 1/5"
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert not on_terminal()
    assert bar("fold 1/5") is None


def test_of_several_processes_only_the_first_one_speaks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    for rank, heard in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        say("epoch 1")
        assert capsys.readouterr().out == ("epoch 1\n" if heard else "")
        assert on_terminal() == heard
        assert bar("fold 1/5") == ("fold 1/5" if heard else None)


def test_a_table_puts_numbers_to_the_right_and_words_to_the_left() -> None:
    assert table(["network", "size", "rate"], [["simple_cnn", 32, "1e-05"], ["resnet18", 224, "-0.5"]]) == (
        "network     size   rate\n"
        "simple_cnn    32  1e-05\n"
        "resnet18     224   -0.5"
    )  # fmt: skip


def test_gaps_in_a_column_of_numbers_leave_it_one() -> None:
    assert table(["mean", "note"], [["0.5", "a"], ["-", ""], ["", "b"], ["12.25 %", "c"]]).splitlines() == [
        "   mean  note",
        "    0.5  a",
        "      -",
        "         b",
        "12.25 %  c",
    ]


def test_a_table_without_rows_has_its_headings() -> None:
    assert table(["a", "bc"], []) == "a  bc"


def test_within_a_block_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with silent(), silent(wanted=False):
        say("inside")
    with pytest.raises(KeyError), silent():
        raise KeyError
    with silent(wanted=False):
        say("after")
    assert capsys.readouterr().out == "after\n"

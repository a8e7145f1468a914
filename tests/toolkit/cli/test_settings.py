"""Flags, variables and defaults; each broken rule in one sentence."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel, Field
from pydantic_settings import CliPositionalArg, CliSubCommand

from support import MAX_WAIT_S
from toolkit.cli.settings import Duration, Name, ScriptSettings, environment, parse, read_first, subcommand
from toolkit.errors import SettingsError


class Settings(ScriptSettings):
    model_config = environment("DEMO_")

    learning_rate: float = Field(0.1, gt=0, le=1, description="step size")
    epochs: int = Field(3, ge=1)
    network: Literal["small", "large"] = "small"
    flip: bool = True
    title: Name = "a title"
    budget: Duration | None = None


class Move(BaseModel):
    """Move a version."""

    version: CliPositionalArg[int] = Field(ge=1)
    reason: str | None = None


class Verbs(ScriptSettings):
    model_config = environment("VERBS_")

    move: CliSubCommand[Move]


@pytest.mark.parametrize("blank", [" ", "\t\n"])
def test_a_blank_name_is_refused(blank):
    with pytest.raises(SettingsError) as caught:
        parse(Settings, None, ["--title", blank])
    assert str(caught.value) == f"--title must not be blank, got {blank!r}"
    assert parse(Settings, None, ["--title", " a b "]).title == " a b "


@pytest.mark.parametrize(
    ("text", "seconds"), [("1h30m", 5400), ("20m", 1200), ("1h5s", 3605), ("0.5h", 1800), ("90", 90), (" 2.5s ", 2.5)]
)
def test_a_time_is_hours_minutes_and_seconds(text, seconds):
    assert parse(Settings, None, ["--budget", text]).budget == seconds
    assert parse(Settings, None, []).budget is None


@pytest.mark.parametrize("text", ["1d", "1m1h", "-5", "0", "0h", "h", "1e5", "nan"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(SettingsError) as caught:
        parse(Settings, None, [f"--budget={text}"])
    assert str(caught.value) == f"--budget must be a time such as 1h30m, 20m or 3600 (seconds), got {text}"


def test_flags_win_over_variables_over_defaults(monkeypatch):
    monkeypatch.setenv("DEMO_EPOCHS", "7")
    monkeypatch.setenv("DEMO_LEARNING_RATE", "0.5")
    settings = parse(Settings, None, ["--learning-rate", "0.25", "--no-flip"])
    assert (settings.epochs, settings.learning_rate, settings.network, settings.flip) == (7, 0.25, "small", False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learning-rate", "5"], "--learning-rate must be at most 1, got 5"),
        (["--learning-rate", "0"], "--learning-rate must be more than 0, got 0"),
        (["--learning-rate=abc"], "--learning-rate must be a number, got abc"),
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--epochs", "1.5"], "--epochs must be a whole number, got 1.5"),
        (["--network", "huge"], "--network must be one of small, large, got huge"),
        (["--learning-rte", "1"], "unknown argument --learning-rte; did you mean --learning-rate?"),
        (["--xyz"], "unknown argument --xyz; see --help"),
        (["--epochs"], "argument --epochs: expected one argument"),
    ],
)
def test_a_broken_rule_is_one_sentence(words, message):
    with pytest.raises(SettingsError) as caught:
        parse(Settings, None, words)
    assert str(caught.value) == message


def test_a_variable_is_named_as_a_variable(monkeypatch):
    monkeypatch.setenv("DEMO_LEARNING_RATE", "7")
    with pytest.raises(SettingsError, match=r"^DEMO_LEARNING_RATE must be at most 1, got 7$"):
        parse(Settings, None, [])


def test_verbs_have_arguments_of_their_own():
    assert subcommand(parse(Verbs, None, ["move", "3", "--reason", "better"])) == Move(version=3, reason="better")
    assert subcommand(parse(Verbs, None, [])) is None
    with pytest.raises(SettingsError, match=r"^VERSION must be at least 1, got 0$"):
        parse(Verbs, None, ["move", "0"])


class Bare(ScriptSettings):
    model_config = environment("BARE_")

    resume: str | None = Field(None, json_schema_extra={"bare": "last"})
    epochs: int = Field(3, ge=1, json_schema_extra={"examples": [3]})
    run_name: str | None = None


@pytest.mark.parametrize(
    ("words", "resume"),
    [
        ([], None),
        (["--resume"], "last"),
        (["--resume", "--epochs", "7"], "last"),
        (["--epochs", "7", "--resume"], "last"),
        (["--resume", "abc", "--epochs", "7"], "abc"),
        (["--resume=abc"], "abc"),
        (["--run-name", "resume"], None),
    ],
)
def test_a_flag_may_say_something_alone(words, resume):
    settings = parse(Bare, None, words)
    assert settings.resume == resume
    assert settings.epochs == (7 if "7" in words else 3)


def test_other_flags_still_need_a_value_and_errors_name_what_was_typed():
    with pytest.raises(SettingsError, match=r"^argument --run-name: expected one argument$"):
        parse(Bare, None, ["--run-name", "--resume"])
    with pytest.raises(SettingsError, match=r"^--epochs must be at least 1, got 0$"):
        parse(Bare, None, ["--resume", "--epochs", "0"])


def shelf():
    return Path("100% mine (and yours)", "kept")


class Shown(ScriptSettings):
    model_config = environment("SHOWN_")

    folder: Path = Field(default_factory=shelf, description="where it is kept")
    name: str | None = Field(None, description="what it is called")
    count: int = Field(3, description="how many")
    rate: float = Field(0.5, description="how fast")
    flip: bool = Field(True, description="turn it")


def test_help_shows_kinds_and_defaults_as_a_person_would(capsys):
    with pytest.raises(SystemExit):
        parse(Shown, "A demonstration.", ["--help"])
    shown = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    options = " ".join(shown[shown.index("options:") :])
    assert "--folder PATH where it is kept (default: 100% mine (and yours)/kept)" in options
    assert "--name TEXT what it is called --count INTEGER how many (default: 3)" in options
    assert "--rate NUMBER how fast (default: 0.5)" in options
    assert "--flip, --no-flip turn it (default: yes)" in options


def test_a_default_that_cannot_be_had_does_not_spoil_help(capsys):
    def nowhere():
        raise SettingsError("there is no home folder")

    class Homeless(ScriptSettings):
        folder: Path = Field(default_factory=nowhere, description="where it is kept")

    with pytest.raises(SystemExit):
        parse(Homeless, None, ["--help"])
    assert "where it is kept\n" in capsys.readouterr().out


def test_what_is_read_first_ends_the_script_only_when_it_is_wrong(capsys):
    read_first(lambda: parse(Settings, None, ["--epochs", "7"]))
    with pytest.raises(SystemExit, match=r"^2$"):
        read_first(lambda: parse(Settings, None, ["--epochs", "0"]))
    assert capsys.readouterr().err.endswith("error: --epochs must be at least 1, got 0\n")


def run(body, **variables):
    code = f"import time\nfrom toolkit.errors import DataError\nfrom toolkit.cli.settings import run_script\n{body}"
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, env={**os.environ, **variables},
    )  # fmt: skip


def test_a_toolkit_error_ends_a_script_with_one_line_and_status_2():
    process = run("def main():\n    raise DataError('no images')\nrun_script(main)")
    _, err = process.communicate(timeout=MAX_WAIT_S)
    assert (process.returncode, err) == (2, "-c: error: no images\n")


def test_errors_and_output_on_an_ascii_terminal():
    body = "def main():\n    print('é 猫')\n    raise DataError('no caf\\udce9\\nand\\x1b[2J é')\nrun_script(main)"
    process = run(body, PYTHONIOENCODING="ascii")
    assert process.communicate(timeout=MAX_WAIT_S) == (
        "\\xe9 \\u732b\n",
        "-c: error: no caf\\xe9\\nand\\x1b[2J \\xe9\n",
    )
    assert process.returncode == 2


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_unwind_the_stack(sent, status):
    body = (
        "def main():\n    try:\n        print('up', flush=True)\n        time.sleep(600)\n"
        "    finally:\n        print('saved', flush=True)\nrun_script(main)"
    )
    process = run(body)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(sent)
    out, err = process.communicate(timeout=MAX_WAIT_S)
    assert (process.returncode, out) == (status, "saved\n")
    assert "Traceback" not in err

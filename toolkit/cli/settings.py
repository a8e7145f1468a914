"""Settings classes as command lines, environment variables and one-line errors.

A script declares each setting once, as a field with a type, a range and a help text::

    class TrainSettings(ScriptSettings):
        model_config = environment("TRAIN_")
        learning_rate: float = Field(1e-3, gt=0, le=1, description="step size of the optimizer")

and gets ``--learning-rate``, ``TRAIN_LEARNING_RATE``, ``--help`` and the message
``train_cnn.py: error: --learning-rate must be at most 1, got 5`` from that one declaration.
"""

import argparse
import io
import math
import re
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, CliApp, CliSettingsSource, SettingsConfigDict, get_subcommand
from pydantic_settings import SettingsError as SourceError

from toolkit.cli.safe_names import display_name
from toolkit.cli.script_commands import as_typed
from toolkit.cli.startup import EXIT_INTERRUPTED, end_imports
from toolkit.errors import SettingsError, ToolkitError, first_line, suggest

EXIT_BAD_INPUT = 2
EXIT_TERMINATED = 128 + signal.SIGTERM
NULL_WORD = "null"  # on a command line; the word None is a stage of the registry
LAST = "last"  # the latest run or study, as a value of --resume
DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?")
MODEL = "image-classifier"  # default name of a registered model
MODEL_NAME = re.compile(r"[\w\- .]{1,200}")  # no slash or colon, which MLflow's addresses use, and no quote
VALUES = {"str": "TEXT", "int": "INTEGER", "float": "NUMBER", "Path": "PATH", "datetime": "TIME"}  # in --help


def environment(prefix: str) -> SettingsConfigDict:
    """The configuration of a settings class with ``prefix`` before its environment variables."""
    return SettingsConfigDict(
        env_prefix=prefix, env_ignore_empty=True, extra="forbid", frozen=True, cli_kebab_case=True,
        cli_implicit_flags=True, cli_hide_none_type=True, cli_avoid_json=True, cli_parse_none_str=NULL_WORD,
    )  # fmt: skip


class ScriptSettings(BaseSettings):
    """Base of the settings of every script: flags over environment variables over defaults."""

    model_config = environment("")


def _require_a_letter(text: str) -> str:
    if not text.strip():
        raise ValueError(f"must not be blank, got {text!r}")
    return text


Name = Annotated[str, AfterValidator(_require_a_letter)]  # of a run or a study


def _seconds(value: object) -> float:
    found = DURATION.fullmatch(str(value).strip())
    seconds = (
        sum(float(part or 0) * unit for part, unit in zip(found.groups(), (3600, 60, 1), strict=True)) if found else 0
    )
    if not 0 < seconds < math.inf:
        raise ValueError(f"must be a time such as 1h30m, 20m or 3600 (seconds), got {value}")
    return seconds


Duration = Annotated[float, BeforeValidator(_seconds)]  # in seconds
S = TypeVar("S", bound=ScriptSettings)


def parse(cls: type[S], manual: str | None, argv: Sequence[str] | None = None) -> S:
    """Read settings from flags and environment variables.

    Parameters
    ----------
    cls
        The settings class.
    manual
        Text above the flags in ``--help``: a script's docstring.
    argv
        The words after the script's name; ``sys.argv[1:]`` when None.

    Raises
    ------
    SettingsError
        One sentence with the setting's name, its rule and the value.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = _Parser(
        prog=program_name(), description=manual and as_typed(manual), formatter_class=_Help, allow_abbrev=False
    )
    source = _Source(cls, root_parser=parser, formatter_class=_Help)
    try:
        return CliApp.run(cls, cli_args=_with_bare_flags(words, cls), cli_settings_source=source)
    except ValidationError as error:
        raise SettingsError(_message(error, cls, words)) from None
    except SourceError as error:
        raise SettingsError(first_line(error)) from None


def _with_bare_flags(words: Sequence[str], cls: type[BaseSettings]) -> list[str]:
    """Give flags without a value their field's ``{"bare": "last"}``: ``--resume`` is ``--resume last``."""
    bare = {
        flag: field.json_schema_extra["bare"]
        for name, field in cls.model_fields.items()
        if isinstance(field.json_schema_extra, dict) and "bare" in field.json_schema_extra
        for flag in _flags(name, cls)
    }
    return [
        f"{word}={bare[word]}" if word in bare and following.startswith("--") else word
        for word, following in pairwise([*words, "--"])
    ]


def _flags(name: str, cls: type[BaseSettings]) -> list[str]:
    """The flags of a field: its own name and ``cli_shortcuts`` of the class."""
    kebab = name.replace("_", "-")
    shortcuts = (cls.model_config.get("cli_shortcuts") or {}).get(kebab, [])
    return [f"--{word}" for word in (kebab, *([shortcuts] if isinstance(shortcuts, str) else shortcuts))]


def subcommand(settings: ScriptSettings) -> BaseModel | None:
    """The sub-command on the command line; None without one."""
    found = get_subcommand(settings, is_required=False)
    return found if isinstance(found, BaseModel) else None


def program_name() -> str:
    """The script's file name, with which each error line begins."""
    return Path(sys.argv[0]).name


def read_first(read: Callable[[], object]) -> None:
    """Take the first step of ``main``, which reads the command line, before the slow imports; exit if it is wrong."""

    def only_read() -> None:
        read()

    if status := _status_of(only_read):
        sys.exit(status)


def run_script(main: Callable[[], int | None]) -> NoReturn:
    """Run a script's ``main`` and exit with its status.

    A ``ToolkitError`` becomes one line on standard error and status 2, Ctrl-C status 130 and
    SIGTERM status 143; both unwind the stack, so that open files are closed and saved.
    """
    end_imports()
    signal.signal(signal.SIGTERM, _raise_terminated)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error has it, so no name ends a run
    warnings.filterwarnings("ignore", module=r"PIL\.")  # about odd metadata, which is not used
    sys.exit(_status_of(main))


def _status_of(main: Callable[[], int | None]) -> int:
    try:
        return main() or 0
    except ToolkitError as error:
        print(f"{program_name()}: error: {display_name(str(error))}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print(f"{program_name()}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `... | head` closed our output: nothing is wrong
        sys.stderr.close()
        return 0


def _raise_terminated(_signal: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(EXIT_TERMINATED)


class _Source(CliSettingsSource[Any]):
    """Flags with readable types and defaults in ``--help``."""

    def _metavar_format(self, obj: Any) -> str:
        shown = super()._metavar_format(obj)
        return VALUES.get(shown, shown)

    def _help_format(self, field_name: str, field_info: FieldInfo, *rest: Any, **others: Any) -> str:
        text = super()._help_format(field_name, field_info, *rest, **others)
        text = text.replace("(default: True)", "(default: yes)").replace("(default: False)", "(default: no)")
        if field_info.default_factory is None:
            return text
        default = ""
        with suppress(ToolkitError):  # no default here: without a home folder, for example
            default = f" (default: {field_info.get_default(call_default_factory=True, validated_data={})})"
        before, _, after = text.partition(" (default factory: ")
        return before + default.replace("%", "%%") + after.partition(")")[2]


class _Help(argparse.RawDescriptionHelpFormatter):
    """The manual with its own line breaks; no default where there is none."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = super()._get_help_string(action)
        return text and text.replace(f" (default: {NULL_WORD})", "")


class _Parser(argparse.ArgumentParser):
    """An argument parser that raises ``SettingsError`` instead of printing its usage."""

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            flag = unknown.split()[0].split("=")[0]
            flags = [name for name in self._option_string_actions if name.startswith("--")]
            near = suggest(flags, flag).split(", ")[0]
            alike = near[:4] == flag[:4] or {*near} == {*flag}
            hint = f"did you mean {near}?" if alike else "see --help"
            message = f"unknown argument {flag}; {hint}"
        elif choice := re.fullmatch(r"argument \{.*\}: invalid choice: '(.*)' \(choose from (.*)\)", message):
            near = suggest(choice[2].replace("'", "").split(", "), choice[1])
            message = f"unknown subcommand {choice[1]}; there are: {near}"
        raise SettingsError(message)


# pydantic's name of a broken rule: the key of its limit, and the message.
_RULES = {
    "less_than_equal": ("le", "must be at most {rule}"),
    "less_than": ("lt", "must be less than {rule}"),
    "greater_than_equal": ("ge", "must be at least {rule}"),
    "greater_than": ("gt", "must be more than {rule}"),
    "finite_number": ("", "must be a finite number"),
    **dict.fromkeys(("literal_error", "enum"), ("expected", "must be one of {rule}")),
    **dict.fromkeys(("float_parsing", "float_type"), ("", "must be a number")),
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float"), ("", "must be a whole number")),
    **dict.fromkeys(("bool_parsing", "bool_type"), ("", "must be true or false")),
    "missing": ("", "is required"),
    "extra_forbidden": ("", "is not a setting"),
}


def _message(error: ValidationError, cls: type[BaseSettings], words: Sequence[str]) -> str:
    """The first broken rule as one sentence."""
    first = error.errors()[0]
    if not first["loc"] or isinstance(first["input"], dict):  # a validator of several settings together
        return first["msg"].removeprefix("Value error, ")
    value = "" if first["type"] in ("missing", "value_error") else f", got {first['input']}"
    return f"{_as_typed(first['loc'], cls, words)} {broken_rule(first)}{value}"


def broken_rule(error: ErrorDetails) -> str:
    """The rule that a value broke, such as ``must be at most 1``."""
    key, text = _RULES.get(error["type"], ("", ""))
    if not text:
        return error["msg"].removeprefix("Value error, ")
    limit = error.get("ctx", {}).get(key)
    shown = f"{limit:g}" if isinstance(limit, float) else str(limit)
    return text.format(rule=shown.replace("'", "").replace(" or ", ", "))


def _as_typed(location: tuple[int | str, ...], cls: type[BaseSettings], words: Sequence[str]) -> str:
    """The setting's name by the source of its value: a flag, a variable, or an argument."""
    name = str(location[-1] if isinstance(location[-1], str) else location[-2])
    typed = {word.split("=")[0] for word in words}
    for flag in _flags(name, cls):
        if typed & {flag, "--no-" + flag[2:]}:
            return flag
    if len(location) > 1:  # an argument of a sub-command
        return name.upper()
    return f"{cls.model_config.get('env_prefix', '')}{name}".upper()

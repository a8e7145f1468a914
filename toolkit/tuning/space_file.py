"""The user's files about a search: what is searched, and what is tried first."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import combinations, product
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from toolkit.errors import SettingsError, known, one_line
from toolkit.tuning.space import Choice, Space, active, dimension_from_json

LONGEST_FILE = 65_536  # characters; a search space takes a few hundred
MOST_OPTIONS = 100  # of one choice: Hyperopt learns about each of them separately


def space_in(path: Path, base: Space, model: type[BaseModel]) -> Space:
    """What ``read_space`` makes of a file; errors begin with its name."""
    with _naming(path):
        return read_space(_text(path), base, model)


def points_in(path: Path, space: Space, model: type[BaseModel]) -> list[dict[str, Any]]:
    """What ``read_points`` makes of a file; errors begin with its name."""
    with _naming(path):
        return read_points(_text(path), space, model)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError("is no text in UTF-8") from None


def read_space(text: str, base: Space, model: type[BaseModel]) -> Space:
    """The space that a YAML file asks for.

    The file gives hyperparameters by name: a list of options, an interval as ``{low: 1e-5, high: 1e-3, log: true}``,
    or one value that is not searched. What it leaves out is searched as in ``base``.

    Parameters
    ----------
    text
        What is in the file, at most 65,536 characters.
    base
        The dimensions of the hyperparameters that the file leaves out.
    model
        All hyperparameters with their ranges and defaults. An interval of a field of type ``int`` has whole numbers
        only. Each option and bound is tried on the model, and any two of them together, so that a rule about two
        hyperparameters is met here and not by a trial.

    Raises
    ------
    SettingsError
        The text is not YAML, or not a search space, in one sentence that begins with the hyperparameter's name.

    Examples
    --------
    >>> from pydantic import Field
    >>> class Recipe(BaseModel):
    ...     epochs: int = Field(15, ge=1)
    ...     dropout: float = Field(0.2, ge=0, lt=1)
    >>> space = read_space("epochs: {low: 5, high: 20}", {"dropout": Choice((0.1, 0.2))}, Recipe)
    >>> [f"{name}: {dimension}" for name, dimension in space.items()]
    ['dropout: one of 0.1, 0.2', 'epochs: 5 to 20, whole']
    >>> read_space("dropout: 1", {}, Recipe)
    Traceback (most recent call last):
    toolkit.errors.SettingsError: dropout: must be less than 1, got 1
    """
    document = _document(text)
    if not isinstance(document, yaml.MappingNode) or not document.value:
        raise SettingsError("must give hyperparameters by name, such as epochs: {low: 5, high: 20}")
    given = {}
    for name, node in _entries(document).items():
        if name not in model.model_fields:
            names = known(model.model_fields, name)
            raise SettingsError(f"{_shown(name)}: is not a hyperparameter; there are: {names}")
        given[name] = dimension_from_json(_read(name, node, model.model_fields[name].annotation))
    space = {**base, **given}
    for point in _corners(space):
        _refuse(point, model, first=given)
    return space


def read_points(text: str, space: Space, model: type[BaseModel]) -> list[dict[str, Any]]:
    """The settings that a YAML file asks to begin with: a list whose entries give hyperparameters by name.

    An entry may leave out what is searched: then it is proposed, as for any trial.

    Parameters
    ----------
    text
        What is in the file, at most 65,536 characters.
    space
        What is searched; each value must lie in it.
    model
        All hyperparameters.

    Raises
    ------
    SettingsError
        The text is not YAML, or not such a list, in one sentence that begins with the entry's number.

    Examples
    --------
    >>> from pydantic import Field
    >>> class Recipe(BaseModel):
    ...     optimizer: str = "adam"
    ...     dropout: float = Field(0.2, ge=0, lt=1)
    >>> space = {"optimizer": Choice(("adam",)), "dropout": Choice((0.1, 0.2))}
    >>> read_points("- {dropout: 0.1}", space, Recipe)
    [{'dropout': 0.1}]
    >>> read_points("- {dropout: 0.3}", space, Recipe)
    Traceback (most recent call last):
    toolkit.errors.SettingsError: entry 1: dropout: must be one of 0.1, 0.2, got 0.3
    """
    document = _document(text)
    if not isinstance(document, yaml.SequenceNode) or not 0 < len(document.value) <= MOST_OPTIONS:
        raise SettingsError(f"must be a list of 1 to {MOST_OPTIONS} entries, such as - {{epochs: 20, dropout: 0.2}}")
    points = []
    for number, node in enumerate(document.value, start=1):
        try:
            points.append(_point(node, space, model))
        except SettingsError as error:
            raise SettingsError(f"entry {number}: {error}") from None
    return points


def _point(node: yaml.Node, space: Space, model: type[BaseModel]) -> dict[str, Any]:
    if not isinstance(node, yaml.MappingNode):
        raise SettingsError("must give hyperparameters by name, such as {epochs: 20, dropout: 0.2}")
    point = {}
    for name, value in _entries(node).items():
        if name not in space:
            raise SettingsError(f"{_shown(name)}: is not searched; there are: {known(space, name)}")
        point[name] = _value(f"{name}:", value, model.model_fields[name].annotation)
        if not space[name].contains(point[name]):
            raise SettingsError(f"{name}: must be {space[name]}, got {_shown(point[name])}")
    if (point.get("optimizer") == "sgd") != ("momentum" in point):
        raise SettingsError("momentum: must be given where the optimizer is sgd, and only there")
    return point


# The text's nodes are read here instead of what yaml.safe_load makes of them. That keeps a value as it was typed: in
# YAML 1.1 1e-5 is a word, 010 is eight and 1:30 is ninety. And it looks only two levels deep, so that aliases of
# aliases cannot grow.


def _document(text: str) -> yaml.Node | None:
    """What the text is."""
    if len(text) > LONGEST_FILE:
        raise SettingsError(f"has {len(text):,} characters; at most {LONGEST_FILE:,} are read")
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = ", ".join(part for part in (error.context, error.problem) if part)
        raise SettingsError(f"line {mark.line + 1}: {said}") from None
    except RecursionError:
        raise SettingsError("is nested too deeply") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # characters that there are not
        raise SettingsError(f"is not YAML: {one_line(error)}") from None


def _entries(node: yaml.MappingNode, of: str = "") -> dict[str, yaml.Node]:
    """The values of a mapping by their keys, each of which may be there once."""
    found: dict[str, yaml.Node] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise SettingsError(f"line {line}: a name must be a word, got a {_KINDS[key.id]}")
        if key.value in found:
            subject = f"{of}: {_shown(key.value)}" if of else f"{_shown(key.value)}:"
            raise SettingsError(f"{subject} is given twice, again in line {line}")
        found[key.value] = value
    return found


_KINDS = {"sequence": "list", "mapping": "mapping"}


def _read(name: str, node: yaml.Node, kind: Any) -> Any:
    """One hyperparameter's dimension, in its JSON form."""
    if isinstance(node, yaml.MappingNode):
        return _interval(name, node, kind)
    items = node.value if isinstance(node, yaml.SequenceNode) else [node]
    if not 0 < len(items) <= MOST_OPTIONS:
        raise SettingsError(f"{name}: must have 1 to {MOST_OPTIONS} options, got {len(items):,}")
    options = [_value(f"{name}:", item, kind) for item in items]
    for index, option in enumerate(options):
        if option in options[:index]:
            raise SettingsError(f"{name}: {_shown(option)} is listed twice")
    return options


def _interval(name: str, node: yaml.MappingNode, kind: Any) -> dict[str, Any]:
    if kind not in (int, float):
        raise SettingsError(f"{name}: must be a word or a list of words; low and high are for numbers")
    entries = _entries(node, name)
    for key in entries:
        if key not in ("low", "high", "log"):
            raise SettingsError(f"{name}: has no {_shown(key)}; there are: {known(('low', 'high', 'log'), key)}")
    if not {"low", "high"} <= set(entries):
        raise SettingsError(f"{name}: must have both low and high, got {known(entries)}")
    low, high = (_value(f"{name}: {end}", entries[end], kind) for end in ("low", "high"))
    log = "log" in entries and _flag(f"{name}: log", entries["log"])
    if log and kind is int:
        raise SettingsError(f"{name}: log is for numbers that need not be whole; list some, such as [16, 32, 64]")
    if log and low <= 0:
        raise SettingsError(f"{name}: low must be more than 0 with log, got {_shown(low)}")
    if low >= high or (log and math.log(low) >= math.log(high)):
        raise SettingsError(f"{name}: low must be less than high, got {_shown(low)} and {_shown(high)}")
    return {"low": low, "high": high, **({"log": True} if log else {})}


def _flag(subject: str, node: yaml.Node) -> bool:
    text = str(_value(subject, node, str))
    if text.lower() not in ("true", "false"):
        raise SettingsError(f"{subject} must be true or false, got {_shown(text)}")
    return text.lower() == "true"


def _value(subject: str, node: yaml.Node, kind: Any) -> Any:
    """A single value: a number for a field of numbers, otherwise the word itself."""
    if not isinstance(node, yaml.ScalarNode):
        raise SettingsError(f"{subject} must be a single value, got a {_KINDS[node.id]}")
    if kind not in (int, float):
        return node.value
    try:
        number = float(node.value)
    except ValueError:
        raise SettingsError(f"{subject} must be a number, got {_shown(node.value)}") from None
    if not math.isfinite(number):
        raise SettingsError(f"{subject} must be a finite number, got {_shown(node.value)}")
    if kind is int and not number.is_integer():
        raise SettingsError(f"{subject} must be a whole number, got {_shown(node.value)}")
    return kind(number)


def _shown(value: Any) -> str:
    """A value for the end of a message: short, in one line, and 5 instead of 5.0."""
    text = str(value).removesuffix(".0") if isinstance(value, float) else str(value)
    short = text if len(text) <= 60 else text[:57] + "..."
    return (short if short.isprintable() else ascii(short)) or "nothing"


def _corners(space: Space) -> Iterator[dict[str, Any]]:
    """Points at which any two hyperparameters take each of their options or bounds, and the others their first."""
    ends = {
        name: dimension.options if isinstance(dimension, Choice) else (dimension.low, dimension.high)
        for name, dimension in space.items()
    }
    start = {name: values[0] for name, values in ends.items()}
    for names in combinations(ends, min(2, len(ends))):
        for values in product(*(ends[name] for name in names)):
            point = start | dict(zip(names, values, strict=True))
            yield {name: point[name] for name in active(space, point)}


_LIMITS = {
    "less_than_equal": "at most",
    "less_than": "less than",
    "greater_than_equal": "at least",
    "greater_than": "more than",
}


def _refuse(point: Mapping[str, Any], model: type[BaseModel], first: Iterable[str]) -> None:
    """Complain about a point that the model refuses; of several names, one of ``first`` begins the sentence."""
    error = _error(model, point)
    if error is None:
        return
    if error["loc"]:
        name, value, limits = str(error["loc"][0]), error["input"], list(error.get("ctx", {}).values())
        if error["type"] in _LIMITS:
            rule = f"must be {_LIMITS[error['type']]} {_shown(limits[0])}"
        elif error["type"] == "literal_error":
            rule = f"must be one of {known(get_args(model.model_fields[name].annotation), value)}"
        else:
            rule = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        raise SettingsError(f"{name}: {rule}, got {_shown(value)}")
    guilty = dict(point)
    for name in point:
        rest = {other: value for other, value in guilty.items() if other != name}
        if _error(model, rest) is not None:  # without this one too
            guilty = rest
    name, *others = sorted(guilty, key=lambda name: name not in first)
    company = ", ".join(f"{other} {_shown(guilty[other])}" for other in others) or "the defaults of the others"
    rule = error["msg"].removeprefix("Value error, ")
    raise SettingsError(f"{name}: {_shown(guilty[name])} does not go with {company}: {rule}")


def _error(model: type[BaseModel], settings: Mapping[str, Any]) -> Any:
    """What the model says against settings, or None."""
    try:
        model.model_validate(settings)
    except ValidationError as error:
        return error.errors(include_url=False)[0]
    return None

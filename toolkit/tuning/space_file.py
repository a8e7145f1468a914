"""The user's YAML files about a search: what is searched, and what is tried first."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import combinations, product
from pathlib import Path
from typing import Annotated, Any, Generic, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator

from toolkit.cli.settings import broken_rule
from toolkit.errors import SettingsError, first_line, suggest
from toolkit.tuning.space import Choice, Dimension, Space, active, dimension_from_json

LONGEST_FILE = 65_536  # characters; a search space takes a few hundred
MOST_OPTIONS = 100  # of one choice: Hyperopt learns about each of them separately

N = TypeVar("N", int, float)
T = TypeVar("T")


def read_file(path: Path, read: Callable[[str, Space, type[BaseModel]], T], space: Space, model: type[BaseModel]) -> T:
    """What ``read_space`` or ``read_points`` makes of a file; errors begin with its name."""
    try:
        return read(path.read_text(encoding="utf-8"), space, model)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path}: is no text in UTF-8") from None
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None


def read_space(text: str, base: Space, model: type[BaseModel]) -> Space:
    """The space that a YAML text asks for.

    It gives hyperparameters by name: a list of options, an interval as ``{low: 1e-5, high: 1e-3, log: true}``, or one
    value that is not searched.

    Parameters
    ----------
    text
        At most 65,536 characters.
    base
        The dimensions of the hyperparameters that the text leaves out.
    model
        All hyperparameters with their rules, which each option and bound must keep, and any two of them together. An
        interval of a field of type ``int`` has whole numbers only.

    Raises
    ------
    SettingsError
        The text is not YAML, or not a search space, in one sentence that begins with the line or the hyperparameter.

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
    if not isinstance(document, dict) or not document:
        raise SettingsError("must give hyperparameters by name, such as epochs: {low: 5, high: 20}")
    given = {name: _dimension(name, value, model) for name, value in document.items()}
    space = {**base, **given}
    for point in _corners(space):
        if error := _error(model, point):
            raise SettingsError(_clash(error, point, model, first=given))
    return space


def read_points(text: str, space: Space, model: type[BaseModel]) -> list[dict[str, Any]]:
    """The settings that a YAML text asks to begin with: a list whose entries give hyperparameters by name.

    An entry may leave out what is searched: then it is proposed, as for any trial.

    Parameters
    ----------
    text
        At most 65,536 characters.
    space
        What is searched; each value must lie in it.
    model
        All hyperparameters.

    Raises
    ------
    SettingsError
        The text is not YAML, or not such a list, in one sentence that begins with the line or the entry's number.

    Examples
    --------
    >>> class Recipe(BaseModel):
    ...     dropout: float = 0.2
    >>> read_points("- {dropout: 0.1}", {"dropout": Choice((0.1, 0.2))}, Recipe)
    [{'dropout': 0.1}]
    """
    document = _document(text)
    if not isinstance(document, list) or not 0 < len(document) <= MOST_OPTIONS:
        raise SettingsError(f"must be a list of 1 to {MOST_OPTIONS} entries, such as - {{epochs: 20, dropout: 0.2}}")
    points = []
    for number, entry in enumerate(document, start=1):
        try:
            points.append(_point(entry, space, model))
        except SettingsError as error:
            raise SettingsError(f"entry {number}: {error}") from None
    return points


def _point(entry: Any, space: Space, model: type[BaseModel]) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise SettingsError("must give hyperparameters by name, such as {epochs: 20, dropout: 0.2}")
    point = {}
    for name, value in entry.items():
        if name not in space:
            raise SettingsError(f"{_shown(name)}: is not searched; there are: {suggest(space, name)}")
        point[name] = _validated(name, _type(name, model), value)
        if not space[name].contains(point[name]):
            raise SettingsError(f"{name}: must be {space[name]}, got {_shown(value)}")
    if (point.get("optimizer") == "sgd") != ("momentum" in point):
        raise SettingsError("momentum: must be given where the optimizer is sgd, and only there")
    return point


class _Loader(yaml.BaseLoader):  # type: ignore[misc]
    """Words, lists and mappings alone: YAML 1.1 would make a word of 1e-5, eight of 010 and ninety of 1:30."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        """Refuse a name that is given twice."""
        names: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in names:
                raise yaml.MarkedYAMLError(problem=f"{_shown(key.value)} is given twice", problem_mark=key.start_mark)
            names.add(key.value)
        return super().construct_mapping(node, deep)


def _document(text: str) -> Any:
    """What the text is; an alias is the same object as its anchor, so that aliases of aliases do not grow."""
    if len(text) > LONGEST_FILE:
        raise SettingsError(f"has {len(text):,} characters; at most {LONGEST_FILE:,} are read")
    try:
        return yaml.load(text, _Loader)  # noqa: S506  it makes nothing but str, list and dict
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise SettingsError(
            f"line {mark.line + 1}: {', '.join(filter(None, (error.context, error.problem)))}"
        ) from None
    except RecursionError:
        raise SettingsError("is nested too deeply") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # characters that there are not
        raise SettingsError(f"is not YAML: {first_line(error)}") from None


class _Interval(BaseModel, Generic[N]):
    """A range of numbers, both ends of which keep the rules of the hyperparameter."""

    model_config = ConfigDict(extra="forbid")

    low: N
    high: N
    log: bool = False

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.log and isinstance(self.low, int):
            raise ValueError("log is for numbers that need not be whole; list some, such as [16, 32, 64]")
        if self.log and self.low <= 0:
            raise ValueError(f"low must be more than 0 with log, got {_shown(self.low)}")
        if self.low >= self.high or (self.log and math.log(self.low) >= math.log(self.high)):
            raise ValueError(f"low must be less than high, got {_shown(self.low)} and {_shown(self.high)}")
        return self


def _dimension(name: str, value: Any, model: type[BaseModel]) -> Dimension:
    if name not in model.model_fields:
        raise SettingsError(f"{_shown(name)}: is not a hyperparameter; there are: {suggest(model.model_fields, name)}")
    kind = _type(name, model)
    if isinstance(value, dict):
        if model.model_fields[name].annotation not in (int, float):
            raise SettingsError(f"{name}: must be a word or a list of words; low and high are for numbers")
        return dimension_from_json(_validated(name, _Interval[kind], value).model_dump())  # type: ignore[valid-type]
    items = value if isinstance(value, list) else [value]
    if not 0 < len(items) <= MOST_OPTIONS:
        raise SettingsError(f"{name}: must have 1 to {MOST_OPTIONS} options, got {len(items):,}")
    options = tuple(_validated(name, kind, item) for item in items)
    for index, option in enumerate(options):
        if option in options[:index]:
            raise SettingsError(f"{name}: {_shown(items[index])} is listed twice")
    return Choice(options)


def _type(name: str, model: type[BaseModel]) -> Any:
    """The type of a hyperparameter with its rules."""
    field = model.model_fields[name]
    return Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation


def _validated(name: str, kind: Any, value: Any) -> Any:
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as caught:
        error = min(caught.errors(include_url=False), key=lambda each: each["type"] == "missing")  # a typo first
    subject = f"{name}: {_shown(error['loc'][0])}" if error["loc"] else f"{name}:"
    got = "" if error["type"] in ("missing", "value_error") else f", got {_shown(error['input'])}"
    raise SettingsError(f"{subject} {broken_rule(error)}{got}")


def _shown(value: Any) -> str:
    """A value for a message: short, in one line, and 5 instead of 5.0."""
    if isinstance(value, list | dict):  # written out, aliases of aliases would grow
        return "a list" if isinstance(value, list) else "a mapping"
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


def _clash(error: Any, point: Mapping[str, Any], model: type[BaseModel], first: Iterable[str]) -> str:
    """Which values of a point the model refuses together; one of ``first`` begins the sentence."""
    guilty = dict(point)
    for name in point:
        rest = {other: value for other, value in guilty.items() if other != name}
        if _error(model, rest) is not None:  # without this one too
            guilty = rest
    name, *others = sorted(guilty, key=lambda name: name not in first)
    company = ", ".join(f"{other} {_shown(guilty[other])}" for other in others) or "the defaults of the others"
    return f"{name}: {_shown(guilty[name])} does not go with {company}: {broken_rule(error)}"


def _error(model: type[BaseModel], settings: Mapping[str, Any]) -> Any:
    """What the model says against settings, or None."""
    try:
        model.model_validate(settings)
    except ValidationError as error:
        return error.errors(include_url=False)[0]
    return None

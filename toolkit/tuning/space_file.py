"""YAML files of the user: a search space, and the settings to begin with."""

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

MAX_FILE_LENGTH = 65_536  # characters; a search space has a few hundred
MAX_OPTIONS = 100  # of one choice: Hyperopt learns each of them separately

N = TypeVar("N", int, float)
T = TypeVar("T")


def read_file(path: Path, read: Callable[[str, Space, type[BaseModel]], T], space: Space, model: type[BaseModel]) -> T:
    """Apply ``read_space`` or ``read_points`` to a file; errors begin with its name."""
    try:
        return read(path.read_text(encoding="utf-8"), space, model)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path}: is not text in UTF-8") from None
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None


def read_space(text: str, base: Space, model: type[BaseModel]) -> Space:
    """Read a search space from a YAML text, which gives hyperparameters by name.

    Each has a list of options, an interval such as ``{low: 1e-5, high: 1e-3, log: true}``, or a fixed value; those that
    are missing stay as in ``base``. Options and bounds must meet the rules of the model, alone and in pairs. What is
    wrong is said in one sentence, as a SettingsError, that begins with the line or the hyperparameter.

    Examples
    --------
    >>> from pydantic import Field
    >>> class Hyperparameters(BaseModel):
    ...     epochs: int = Field(15, ge=1)
    ...     dropout: float = Field(0.2, ge=0, lt=1)
    >>> space = read_space("epochs: {low: 5, high: 20}", {"dropout": Choice((0.1, 0.2))}, Hyperparameters)
    >>> [f"{name}: {dimension}" for name, dimension in space.items()]
    ['dropout: one of 0.1, 0.2', 'epochs: 5 to 20, whole']
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
    """Read initial points from a YAML text: a list whose entries give hyperparameters by name.

    Each value must lie in the space; missing hyperparameters are proposed, as for any trial. What is wrong is said in
    one sentence, as a SettingsError, that begins with the line or the entry's number.

    Examples
    --------
    >>> class Hyperparameters(BaseModel):
    ...     dropout: float = 0.2
    >>> read_points("- {dropout: 0.1}", {"dropout": Choice((0.1, 0.2))}, Hyperparameters)
    [{'dropout': 0.1}]
    """
    document = _document(text)
    if not isinstance(document, list) or not 0 < len(document) <= MAX_OPTIONS:
        raise SettingsError(f"must be a list of 1 to {MAX_OPTIONS} entries, such as - {{epochs: 20, dropout: 0.2}}")
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
    """Strings, lists and mappings only: YAML 1.1 would read 1e-5 as a string, 010 as 8 and 1:30 as 90."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        """Refuse a name that is given twice."""
        names: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in names:
                raise yaml.MarkedYAMLError(problem=f"{_shown(key.value)} is given twice", problem_mark=key.start_mark)
            names.add(key.value)
        return super().construct_mapping(node, deep)


def _document(text: str) -> Any:
    """Parse the text; an alias is the same object as its anchor, so that aliases of aliases do not grow."""
    if len(text) > MAX_FILE_LENGTH:
        raise SettingsError(f"has {len(text):,} characters; at most {MAX_FILE_LENGTH:,} are read")
    try:
        return yaml.load(text, _Loader)  # noqa: S506  it makes nothing but str, list and dict
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reasons = ", ".join(filter(None, (error.context, error.problem)))
        raise SettingsError(f"line {mark.line + 1}: {reasons}") from None
    except RecursionError:
        raise SettingsError("is nested too deeply") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # invalid characters
        raise SettingsError(f"is not YAML: {first_line(error)}") from None


class _Interval(BaseModel, Generic[N]):
    """A range of numbers, both ends of which meet the rules of the hyperparameter."""

    model_config = ConfigDict(extra="forbid")

    low: N
    high: N
    log: bool = False

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.log and isinstance(self.low, int):
            raise ValueError("log is not for whole numbers; list some, such as [16, 32, 64]")
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
    if not 0 < len(items) <= MAX_OPTIONS:
        raise SettingsError(f"{name}: must have 1 to {MAX_OPTIONS} options, got {len(items):,}")
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
    """A value for a message: short, on one line, and 5 instead of 5.0."""
    if isinstance(value, list | dict):  # written out, aliases of aliases would grow
        return "a list" if isinstance(value, list) else "a mapping"
    text = str(value).removesuffix(".0") if isinstance(value, float) else str(value)
    short = text if len(text) <= 60 else text[:57] + "..."
    return (short if short.isprintable() else ascii(short)) or "nothing"


def _corners(space: Space) -> Iterator[dict[str, Any]]:
    """Points with all pairs of options or bounds of any two hyperparameters, the others at their first."""
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
    """The values of a point that the model refuses together; one of ``first`` begins the sentence."""
    conflicting = dict(point)
    for name in point:
        rest = {other: value for other, value in conflicting.items() if other != name}
        if _error(model, rest) is not None:  # without this one too
            conflicting = rest
    name, *others = sorted(conflicting, key=lambda name: name not in first)
    partners = ", ".join(f"{other} {_shown(conflicting[other])}" for other in others) or "the defaults of the others"
    return f"{name}: {_shown(conflicting[name])} does not go with {partners}: {broken_rule(error)}"


def _error(model: type[BaseModel], settings: Mapping[str, Any]) -> Any:
    """The first error of the model about settings, or None."""
    try:
        model.model_validate(settings)
    except ValidationError as error:
        return error.errors(include_url=False)[0]
    return None

"""Registered model versions as read from MLflow: fields, stage and history.

Two aliases of MLflow, ``production`` and ``staging``, define which version is where; the tag ``stage``
repeats it in a form that can be searched; and one tag for each transition, ``transition.<time>``, keeps
the history that MLflow itself does not keep.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, Literal, Self, get_args

from toolkit.bundle.files import DIGEST_TAG
from toolkit.cli.script_commands import command_line
from toolkit.errors import NotRegistered, RegistryError, suggest
from toolkit.tracking.connection import ANSWER_SECONDS, MlflowClient, MlflowException, mlflow_call

Stage = Literal["None", "Staging", "Production", "Archived"]
STAGES: tuple[Stage, ...] = get_args(Stage)
# A version with both aliases is in Production.
ALIASES: Mapping[Stage, str] = {"Production": "production", "Staging": "staging"}
STAGE_TAG, METRICS_TAG, MODEL_TAG, TRANSITION = "stage", "metrics", "model_id", "transition."
VERSIONS_A_PAGE = 100
MISSING = "RESOURCE_DOES_NOT_EXIST"  # MLflow's code
MISSING_OR_INVALID = (MISSING, "INVALID_PARAMETER_VALUE")  # also for version 0 and some missing aliases


def stage_named(text: str) -> Stage:
    """The stage with that name, in any case.

    >>> stage_named("PRODUCTION")
    'Production'
    """
    name = text.strip().capitalize()
    if name not in STAGES:
        raise RegistryError(f"there is no stage {text!r}; there are: {suggest(STAGES, name)}")
    return name


@dataclass(frozen=True)
class Transition:
    """A move of a version from one stage to another."""

    version: int
    time: datetime  # UTC, to the microsecond; unique among the transitions of a model
    source: str  # a stage; empty for a registration
    target: Stage
    user: str = ""  # name on the server or machine
    reason: str = ""
    rollback: bool = False  # whether the version returned to Production by a rollback
    cancels: str = ""  # key of an earlier transition that never took effect
    gate: str = ""  # result of the comparison with the champion that it replaced

    @property
    def key(self) -> str:
        """The name of the tag that holds the transition.

        >>> Transition(3, datetime(2026, 5, 1, 9, 30, tzinfo=UTC), "None", "Staging").key
        'transition.2026-05-01T09:30:00.000000Z'
        """
        return f"{TRANSITION}{self.time.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"

    def to_json(self) -> str:
        """The value of the tag."""
        fields = {"from": self.source, "to": self.target, "user": self.user, "reason": self.reason}
        marks = {"rollback": self.rollback, "cancels": self.cancels, "gate": self.gate}
        return json.dumps(fields | {name: value for name, value in marks.items() if value})

    @classmethod
    def from_tag(cls, version: int, key: str, value: str) -> Self:
        """Read a tag; ``ValueError`` or ``KeyError`` when another tool wrote it."""
        fields = json.loads(value)
        return cls(
            version=version,
            time=datetime.fromisoformat(key.removeprefix(TRANSITION)).astimezone(UTC),
            source=str(fields["from"]),
            target=stage_named(fields["to"]),
            user=str(fields.get("user", "")),
            reason=str(fields.get("reason", "")),
            rollback=bool(fields.get("rollback", False)),
            cancels=str(fields.get("cancels", "")),
            gate=str(fields.get("gate", "")),
        )


@dataclass(frozen=True)
class Version:
    """A registered model version.

    The digest of its bundle was recorded at registration; that of a version that another tool registered is the one
    that its training recorded, or empty.
    """

    name: str  # of the registered model
    version: int
    stage: Stage  # by the aliases; for a version without one, by its tag
    run_id: str
    model_id: str  # of MLflow's logged model with the bundle
    digest: str
    created: datetime  # time of registration, UTC
    aliases: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)  # the one its run was selected by, and those of its card
    description: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)  # without those of transitions
    mlflow_stage: str | None = None  # MLflow's own stage; None once MLflow has no stages any more
    transitions: tuple[Transition, ...] = ()  # oldest first

    @property
    def history(self) -> tuple[Transition, ...]:
        """The transitions, with a registration where another tool registered the version."""
        if any(entry.source == "" for entry in self.transitions):
            return self.transitions
        registration = Transition(self.version, self.created, "", "None", reason="registered by another tool")
        return registration, *self.transitions

    @property
    def written_stage(self) -> Stage:
        """The stage by the tag."""
        with suppress(RegistryError):
            return stage_named(self.tags.get(STAGE_TAG, "None"))
        return "None"

    def to_dict(self) -> dict[str, Any]:
        """The version as plain values for JSON."""
        fields = {**vars(self), "created": self.created.isoformat(), "aliases": list(self.aliases)}
        del fields["transitions"]
        return fields


def held_stage(aliases: Iterable[str]) -> Stage | None:
    """The stage that a version's aliases put it in.

    >>> held_stage(["champion", "production"])
    'Production'
    """
    held = set(aliases)
    return next((stage for stage, alias in ALIASES.items() if alias in held), None)


def read_version(entity: Any, aliases: Iterable[str] | None = None) -> Version:
    """A version from MLflow's entity, with the aliases where MLflow leaves them out."""
    number = int(entity.version)
    names = tuple(sorted(entity.aliases if aliases is None else aliases))
    history = {key: value for key, value in entity.tags.items() if key.startswith(TRANSITION)}
    tags = {key: value for key, value in entity.tags.items() if key not in history}
    source_id = str(entity.source or "").removeprefix("models:/")
    version = Version(
        name=entity.name,
        version=number,
        stage="None",
        run_id=entity.run_id or "",
        model_id=tags.get(MODEL_TAG, source_id if source_id.startswith("m-") else ""),
        digest=tags.get(DIGEST_TAG, ""),
        created=datetime.fromtimestamp(entity.creation_timestamp / 1000, UTC),
        aliases=names,
        metrics=_metrics(tags),
        description=entity.description or "",
        tags=tags,
        mlflow_stage=getattr(entity, "current_stage", None),
        transitions=tuple(_once(sorted(_transitions(number, history), key=lambda entry: entry.time))),
    )
    resting: Stage = "Archived" if version.written_stage in ALIASES else version.written_stage
    return replace(version, stage=held_stage(names) or resting)


def read_versions(client: MlflowClient, name: str) -> Iterator[Version]:
    """Every version of a registered model, a page at a time, newest first."""
    aliases: dict[int, list[str]] = {}
    for alias, number in read_aliases(client, name).items():
        aliases.setdefault(number, []).append(alias)
    query, newest_first = f"name = '{name}'", ["version_number DESC"]
    token: str | None = ""  # none yet
    while token is not None:
        with mlflow_call("list the versions", timeout=ANSWER_SECONDS):
            page = client.search_model_versions(query, VERSIONS_A_PAGE, newest_first, token or None)
        yield from (read_version(entity, aliases.get(int(entity.version), ())) for entity in page)
        token = page.token or None


def newest_version(client: MlflowClient, name: str) -> Version | None:
    """The version of a registered model with the highest number; None when there is none."""
    with mlflow_call("find the newest version", timeout=ANSWER_SECONDS):
        found = client.search_model_versions(f"name = '{name}'", 1, ["version_number DESC"])
    return numbered_version(client, name, int(found[0].version)) if found else None


def read_aliases(client: MlflowClient, name: str) -> dict[str, int]:
    """The version behind each alias; ``NotRegistered`` when there is no such model."""
    with mlflow_call(f"read the model {name!r}", timeout=ANSWER_SECONDS):
        try:
            model = client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code != MISSING:
                raise
            names = [other.name for other in client.search_registered_models()]
            raise NotRegistered(f"no model {name!r} is registered yet; there are: {suggest(names, name)}") from None
    return {alias: int(number) for alias, number in model.aliases.items()}


def numbered_version(client: MlflowClient, name: str, number: int) -> Version:
    """The version with a number; ``RegistryError`` when there is none."""
    with mlflow_call(f"read version {number}", timeout=ANSWER_SECONDS):
        try:
            return read_version(client.get_model_version(name, str(number)))
        except MlflowException as error:
            if error.error_code not in MISSING_OR_INVALID:
                raise
    numbers = [version.version for version in read_versions(client, name)]
    raise RegistryError(f"{name} has no version {number}; there are: {suggest(numbers, number)}")


def version_in_stage(client: MlflowClient, name: str, stage: Stage) -> Version:
    """The version in Production or Staging; ``NotRegistered`` when there is none."""
    with mlflow_call(f"read what is in {stage}", timeout=ANSWER_SECONDS):
        try:
            return read_version(client.get_model_version_by_alias(name, ALIASES[stage]))
        except MlflowException as error:
            if error.error_code not in MISSING_OR_INVALID:
                raise
    versions = list(read_versions(client, name))
    though = ""
    if marked := next((version.version for version in versions if version.mlflow_stage == stage), None):
        command = command_line("model_registry", f"promote {marked} {stage}")
        though = (
            f", though MLflow's own stage says v{marked}; the alias {ALIASES[stage]!r} counts, and {command} sets it"
        )
    numbers = suggest(version.version for version in versions)
    raise NotRegistered(f"no version of {name} is in {stage} yet{though}; there are: {numbers}")


def _metrics(tags: Mapping[str, str]) -> dict[str, float]:
    with suppress(ValueError, TypeError, AttributeError):  # another tool may use the same tag
        return {str(name): float(value) for name, value in json.loads(tags.get(METRICS_TAG, "{}")).items()}
    return {}


def _transitions(number: int, tags: Mapping[str, str]) -> Iterator[Transition]:
    for key, value in tags.items():
        with suppress(ValueError, KeyError, TypeError, RegistryError):
            yield Transition.from_tag(number, key, value)


def _once(entries: Iterable[Transition]) -> Iterator[Transition]:
    """Entries in order, without repetitions, which two processes write that repair the same."""
    for _, same in groupby(entries, key=lambda entry: (entry.source, entry.target)):
        yield next(same)

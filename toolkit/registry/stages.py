"""Moves of versions between stages that survive a kill between any two writes.

The alias decides: MLflow keeps each alias on one version at most and moves it in one write, so there is
never more than one version in Production, and always one while another replaces it. A move writes, in
this order:

1. the history tag on the version that moves: the intention, with user and reason;
2. the alias: the switch itself, which takes it from the former version in the same write;
3. the removal of an alias that the version leaves;
4. everything that follows from the aliases: MLflow's own stage, the ``stage`` tag, and the move of the
   former version to Archived with its history tag.

Step 4 is ``repair``, which compares tags and stages with the aliases and writes the difference until
there is none: the last process to write has read after all others. Each move begins with it too, so the
next move completes one that a killed process or another tool left: an intention without a switch is
cancelled, and a switch without its consequences gets them.
"""

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import chain, islice

from toolkit.cli.script_commands import command_line
from toolkit.registry.versions import ALIASES, STAGE_TAG, Stage, Transition, Version, held_stage, read_versions
from toolkit.tracking.connection import ANSWER_SECONDS, MlflowClient, MlflowException, mlflow_call
from toolkit.tracking.run import machine_user

STAGES_ARE_GONE = frozenset({"ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED"})  # answers of a server without stages
MAX_READS = 10  # of versions that other processes may be changing
NO_TIME = datetime.min.replace(tzinfo=UTC)


def utc_now() -> datetime:
    """The time for history tags."""
    return datetime.now(UTC)


def whoami() -> str:
    """The user name for the history: that of the server where one is set, else that of the machine."""
    return os.environ.get("MLFLOW_TRACKING_USERNAME") or machine_user()


class Stages:
    """The stages of one registered model; the clock gives the time in UTC."""

    def __init__(self, client: MlflowClient, name: str, clock: Callable[[], datetime] = utc_now) -> None:
        self.client = client
        self.name = name
        self._clock = clock
        self._newest = NO_TIME

    def versions(self) -> list[Version]:
        """Every version, newest first."""
        found = list(read_versions(self.client, self.name))
        self._newest = max([self._newest, *(entry.time for version in found for entry in version.transitions)])
        return found

    def move(self, version: Version, target: Stage, reason: str, *, rollback: bool = False, gate: str = "") -> None:
        """Move a version, in the order of writes that the module describes."""
        self._record(Transition(version.version, NO_TIME, version.stage, target, whoami(), reason, rollback, gate=gate))
        if target in ALIASES:
            with mlflow_call(f"set the alias {ALIASES[target]!r}", timeout=ANSWER_SECONDS):
                self.client.set_registered_model_alias(self.name, ALIASES[target], str(version.version))
        self._drop_aliases(version, keep=target)
        self.repair()

    def repair(self) -> list[str]:
        """Bring tags and stages in line with the aliases; the changes, a sentence each."""
        rounds = iter(self._repair, [])
        return list(chain.from_iterable(islice(rounds, MAX_READS)))

    def _repair(self) -> list[str]:
        versions = self.versions()
        alias_holders = {stage: each.version for each in versions if (stage := held_stage(each.aliases))}
        # Versions with an alias first: in the history their arrival explains why others leave, and in MLflow's
        # stages one write moves them in and the others out.
        versions.sort(key=lambda each: held_stage(each.aliases) is None)
        archived_by_mlflow: set[int] = set()
        changes = []
        for version in versions:
            stage, entry = resolve_stage(version, alias_holders)
            if entry is not None:
                self._record(entry)
            if held := held_stage(version.aliases):
                self._drop_aliases(version, keep=held)
            shown = "Archived" if version.version in archived_by_mlflow else version.mlflow_stage
            moved = shown not in (stage, None) and self._show(version.version, stage)
            if moved and stage in ALIASES:
                archived_by_mlflow |= {each.version for each in versions if each.mlflow_stage == stage}
            if version.written_stage != stage:
                with mlflow_call("set the stage tag", timeout=ANSWER_SECONDS):
                    self.client.set_model_version_tag(self.name, str(version.version), STAGE_TAG, stage)
            if moved or entry is not None or version.written_stage != stage:
                changes.append(f"v{version.version} was left half-way and is in {stage} now")
        return changes

    def _record(self, entry: Transition) -> None:
        """Append to the history, with a time after all entries."""
        self._newest = max(self._clock(), self._newest + timedelta(microseconds=1))
        entry = replace(entry, time=self._newest)
        with mlflow_call(f"move v{entry.version} to {entry.target}", timeout=ANSWER_SECONDS):
            self.client.set_model_version_tag(self.name, str(entry.version), entry.key, entry.to_json())

    def _drop_aliases(self, version: Version, keep: Stage) -> None:
        for stage, alias in ALIASES.items():
            if stage != keep and alias in version.aliases:
                with mlflow_call(f"remove the alias {alias!r}", timeout=ANSWER_SECONDS):
                    self.client.delete_registered_model_alias(self.name, alias)

    def _show(self, version: int, stage: Stage) -> bool:
        """Set MLflow's own stage, while MLflow has stages; whether it was set."""
        change = getattr(self.client, "transition_model_version_stage", None)
        if change is None:
            return False
        with mlflow_call("set MLflow's stage", timeout=ANSWER_SECONDS), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # "stages will be removed"
            try:
                change(self.name, str(version), stage, archive_existing_versions=stage in ALIASES)
            except MlflowException as error:
                if error.error_code not in STAGES_ARE_GONE:
                    raise
                return False
        return True


def contradictions(versions: Iterable[Version]) -> list[str]:
    """Versions whose MLflow stage contradicts the alias, which counts; a sentence each.

    >>> contradictions([Version("cats", 2, "None", "", "", "", NO_TIME, mlflow_stage="Production")])
    ["v2 is in None, though MLflow's own stage says Production"]
    """
    return [
        f"v{version.version} is in {version.stage}, though MLflow's own stage says {version.mlflow_stage}"
        for version in versions
        if version.mlflow_stage not in (None, version.stage)
    ]


def contradiction(client: MlflowClient, version: Version) -> str:
    """A sentence about MLflow's own stages that contradict a version's alias; empty when none do.

    Takes one request, and none once MLflow has no stages any more.
    """
    latest = getattr(client, "get_latest_versions", None)
    if latest is None or version.stage not in ALIASES:
        return ""
    with mlflow_call("read MLflow's own stages", timeout=ANSWER_SECONDS), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # "stages will be removed"
        shown = [int(other.version) for other in latest(version.name, [version.stage])]
    stage, alias = version.stage, f"the alias {ALIASES[version.stage]!r}, which counts"
    if shown and shown[0] != version.version:
        return (
            f"MLflow's own stage puts v{shown[0]} into {stage}, and {alias}, is on v{version.version}; to change"
            f" that: {command_line('model_registry', f'promote {shown[0]} {stage}')}"
        )
    if version.mlflow_stage in (None, stage):
        return ""
    return (
        f"MLflow's own stage puts v{version.version} into {version.mlflow_stage}, and {alias}, into {stage}; to"
        f" repair that: {command_line('model_registry', f'promote {version.version} {stage}')}"
    )


def resolve_stage(version: Version, alias_holders: Mapping[Stage, int]) -> tuple[Stage, Transition | None]:
    """The stage that a version is in, and the history entry that is missing, if one is.

    Aliases, ``stage`` tag and newest transition of the version may disagree; ``alias_holders`` has the
    number of the version that holds the alias of each stage.
    """
    last = version.transitions[-1] if version.transitions else None
    written = version.written_stage
    recorded = last.target if last else written
    held = held_stage(version.aliases)

    def entry(source: Stage, target: Stage, reason: str, cancels: str = "") -> Transition:
        return Transition(version.version, NO_TIME, source, target, whoami(), reason, cancels=cancels)

    if held:
        if recorded == held:
            return held, None
        if written == held and last:
            return held, entry(recorded, held, "repaired: a move that never took effect", last.key)
        return held, entry(written, held, f"repaired: the alias {ALIASES[held]!r} was set by another tool")
    if recorded not in ALIASES:
        return recorded, None
    if written in ALIASES:
        successor = alias_holders.get(written)
        reason = (
            f"replaced by v{successor}" if successor else f"repaired: the alias {ALIASES[written]!r} was taken away"
        )
        return "Archived", entry(written, "Archived", reason)
    return written, entry(recorded, written, "repaired: a move that never took effect", last.key if last else "")


def production_line(transitions: Iterable[Transition]) -> list[int]:
    """The versions that a rollback can return to, the one in Production last.

    A promotion appends to the line. A rollback, and archiving the version in Production, remove from its
    end; so a second rollback goes further back, and none returns to a version that was removed from
    Production on purpose, until it is promoted again.

    >>> def entry(second, version, source, target, **more):
    ...     return Transition(version, datetime(2026, 5, 1, 9, 0, second, tzinfo=UTC), source, target, **more)
    >>> promotions = [entry(second, second, "None", "Production") for second in (1, 2, 3)]
    >>> production_line(promotions)
    [1, 2, 3]
    >>> production_line([*promotions, entry(4, 2, "Archived", "Production", rollback=True)])
    [1, 2]
    """
    entries = sorted(transitions, key=lambda entry: entry.time)
    cancelled = {entry.cancels for entry in entries if entry.cancels}
    line: list[int] = []
    for entry in entries:
        if entry.cancels or entry.key in cancelled:
            continue
        if entry.target == "Production":
            if entry.rollback and entry.version in line:
                while line[-1] != entry.version:
                    line.pop()
            elif line[-1:] != [entry.version]:
                line.append(entry.version)
        elif entry.source == "Production" and line[-1:] == [entry.version]:
            line.pop()
    return line


def rollback_candidates(versions: Sequence[Version]) -> list[Version]:
    """The versions that a rollback may go to, in order: formerly in Production, latest first."""
    numbered = {version.version: version for version in versions}
    champion = next((version.version for version in versions if version.stage == "Production"), None)
    line = production_line(entry for version in versions for entry in version.transitions)
    order = dict.fromkeys(number for number in reversed(line) if number != champion)
    return [numbered[number] for number in order]

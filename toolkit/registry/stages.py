"""How versions move between stages, so that a kill between any two writes does no harm.

The alias is the truth: MLflow keeps each alias on one version at most and moves it in one write, so
there is never more than one Production, and no moment without one while one replaces another.
A move writes, in this order:

1. the history tag on the version that moves: the intention, with who and why;
2. the alias: the switch itself, which takes it from its former holder in the same write;
3. the removal of an alias that the version leaves behind;
4. everything that follows from the aliases: MLflow's own stage, the ``stage`` tag, and the former
   holder's way to Archived with its history tag.

Step 4 is ``settle``, which compares what is written with what the aliases say and writes the
difference, until a look finds none: whoever writes last has looked after all others. Each move
begins with it too, so what a killed process or another tool left behind is mended by the next
move: an intention whose switch never came is declared void, and a switch whose consequences are
missing gets them.
"""

import getpass
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from toolkit.registry.versions import ALIASES, STAGE_TAG, Stage, Transition, Version, held_stage, read_versions
from toolkit.tracking.connection import ANSWER_SECONDS, MlflowClient, MlflowException, mlflow_call

STAGES_ARE_GONE = frozenset({"ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED"})  # what a server without stages may answer
MAX_READS = 10  # at what others may be changing at the same time
NO_TIME = datetime.min.replace(tzinfo=UTC)


def utc_now() -> datetime:
    """The time, as history tags record it."""
    return datetime.now(UTC)


def whoami() -> str:
    """Who is recorded in the history: the server's user name where one is set, else the machine's."""
    try:
        return os.environ.get("MLFLOW_TRACKING_USERNAME") or getpass.getuser()
    except (KeyError, OSError):  # a container's user id without a name
        return "unknown"


class Stages:
    """The stages of one registered model.

    Parameters
    ----------
    client
        Of the store that holds the model.
    name
        The registered model.
    clock
        The time in UTC.
    """

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

    def move(self, version: Version, target: Stage, why: str, *, rollback: bool = False, gate: str = "") -> None:
        """Move a version, in the order that the module describes."""
        self._record(Transition(version.version, NO_TIME, version.stage, target, whoami(), why, rollback, gate=gate))
        if target in ALIASES:
            with mlflow_call(f"set the alias {ALIASES[target]!r}", timeout=ANSWER_SECONDS):
                self.client.set_registered_model_alias(self.name, ALIASES[target], str(version.version))
        self._drop_aliases(version, keep=target)
        self.repair()

    def repair(self) -> list[str]:
        """Make everything say what the aliases say, and tell what had to be changed."""
        changes: list[str] = []
        for _ in range(MAX_READS):
            found = self._repair()
            changes += found
            if not found:
                break
        return changes

    def _repair(self) -> list[str]:
        versions = self.versions()
        holders = {stage: each.version for each in versions if (stage := held_stage(each.aliases))}
        # Holders first: their arrival explains, in the history, why others leave, and in MLflow's
        # stages one write brings a holder in and sends the others out.
        versions.sort(key=lambda each: held_stage(each.aliases) is None)
        archived_by_mlflow: set[int] = set()
        changes = []
        for version in versions:
            stage, entry = resolve_stage(version, holders)
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
                changes.append(f"v{version.version} had been left half-way and is in {stage} now")
        return changes

    def _record(self, entry: Transition) -> None:
        """Append to the history, later than everything in it."""
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
        """Set MLflow's own stage while MLflow has stages."""
        change = getattr(self.client, "transition_model_version_stage", None)
        if change is None:
            return False
        with mlflow_call("set MLflow's stage", timeout=ANSWER_SECONDS), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # "stages will be removed": this method is ready for that
            try:
                change(self.name, str(version), stage, archive_existing_versions=stage in ALIASES)
            except MlflowException as error:
                if error.error_code not in STAGES_ARE_GONE:
                    raise
                return False
        return True


def contradictions(versions: Iterable[Version]) -> list[str]:
    """Where MLflow's own stage says otherwise than the alias, which counts; a sentence each.

    >>> contradictions([Version("cats", 2, "None", "", "", "", NO_TIME, mlflow_stage="Production")])
    ["v2 is in None, though MLflow's own stage says Production"]
    """
    return [
        f"v{version.version} is in {version.stage}, though MLflow's own stage says {version.mlflow_stage}"
        for version in versions
        if version.mlflow_stage not in (None, version.stage)
    ]


def resolve_stage(version: Version, holders: Mapping[Stage, int]) -> tuple[Stage, Transition | None]:
    """The stage that a version is in, and the history entry that is missing, if one is.

    Parameters
    ----------
    version
        As read; its aliases, its ``stage`` tag and its newest history entry may disagree.
    holders
        The version that holds the alias of each stage.
    """
    last = version.transitions[-1] if version.transitions else None
    written = version.written_stage
    recorded = last.target if last else written
    held = held_stage(version.aliases)

    def entry(source: Stage, target: Stage, why: str, voids: str = "") -> Transition:
        return Transition(version.version, NO_TIME, source, target, whoami(), why, cancels=voids)

    if held:
        if recorded == held:
            return held, None
        if written == held and last:
            return held, entry(recorded, held, "mended: a move that never took effect", last.key)
        return held, entry(written, held, f"mended: the alias {ALIASES[held]!r} was set by another tool")
    if recorded not in ALIASES:
        return recorded, None
    if written in ALIASES:
        successor = holders.get(written)
        why = f"replaced by v{successor}" if successor else f"mended: the alias {ALIASES[written]!r} was taken away"
        return "Archived", entry(written, "Archived", why)
    return written, entry(recorded, written, "mended: a move that never took effect", last.key if last else "")


def production_line(transitions: Iterable[Transition]) -> list[int]:
    """The versions that a rollback can go back through, the present Production last.

    A promotion adds to the line. A rollback, and an archiving of what is in Production, take from
    its end; so a second rollback goes further back, and none returns to what was taken out of
    Production on purpose, until somebody promotes it again.

    >>> def entry(second, version, source, target, **more):
    ...     return Transition(version, datetime(2026, 5, 1, 9, 0, second, tzinfo=UTC), source, target, **more)
    >>> promotions = [entry(second, second, "None", "Production") for second in (1, 2, 3)]
    >>> production_line(promotions)
    [1, 2, 3]
    >>> production_line([*promotions, entry(4, 2, "Archived", "Production", rollback=True)])
    [1, 2]
    """
    entries = sorted(transitions, key=lambda entry: entry.time)
    void = {entry.cancels for entry in entries if entry.cancels}
    line: list[int] = []
    for entry in entries:
        if entry.cancels or entry.key in void:
            continue
        if entry.target == "Production":
            _append(line, entry)
        elif entry.source == "Production" and line[-1:] == [entry.version]:
            line.pop()
    return line


def _append(line: list[int], entry: Transition) -> None:
    if entry.rollback and entry.version in line:
        while line[-1] != entry.version:
            line.pop()
    elif line[-1:] != [entry.version]:
        line.append(entry.version)


def rollback_candidates(versions: Sequence[Version]) -> list[Version]:
    """Where a rollback may go, the best first: what was in Production before, latest first."""
    numbered = {version.version: version for version in versions}
    present = next((version.version for version in versions if version.stage == "Production"), None)
    line = production_line(entry for version in versions for entry in version.transitions)
    order = dict.fromkeys(number for number in reversed(line) if number != present)
    return [numbered[number] for number in order]

"""Register the best model, move it through stages, compare versions, and put a former one back.

    python model_registry.py register                       # the best run of the experiment that holds models
    python model_registry.py register --experiment-name training --metric best_val_accuracy
    python model_registry.py register --run 927aad5e2dda486b896b25da52e199c5
    python model_registry.py list
    python model_registry.py promote 1 Production --reason "first model"
    python model_registry.py compare Production 2
    python model_registry.py promote 2 Production --reason "tuned"
    python model_registry.py rollback --reason "too many cats"
    python model_registry.py history

Further verbs: show, verify and archive. Each takes --json for programs; --tracking-uri and
--model-name come before the verb. Everything is kept in MLflow, at MLFLOW_TRACKING_URI or else in
mlflow.db in this folder: one version is in Production, the one that the alias `production` names,
and each move is recorded with who and why. A version is checked against the digest of its bundle
before it goes to Staging or Production, and at each load. Before it replaces another in Production
both are compared on the same images: one that is significantly worse is refused, until --force and
a --reason are given. --data photos/ compares them on images of your own, one sub-folder a class.
"""

from toolkit.cli.import_interrupt import exit_on_interrupt

if __name__ == "__main__":
    exit_on_interrupt()

import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_settings import CliPositionalArg, CliSubCommand

from toolkit.cli.commands import command_line
from toolkit.cli.settings import (
    MODEL,
    MODEL_NAME,
    ScriptSettings,
    environment,
    parse,
    program_name,
    read_first,
    run_script,
    subcommand,
)
from toolkit.errors import SettingsError

SUBCOMMANDS = "list, show, register, promote, compare, rollback, history, verify, archive"
SERVE = command_line("serve_model")


class Subcommand(BaseModel):
    """What all verbs share."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    as_json: bool = Field(False, alias="json", description="print JSON, for programs")

    def run(self, registry: "ModelRegistry") -> "CommandResult":
        """Do what the verb says."""
        raise NotImplementedError


class List(Subcommand):
    """List the versions, newest first."""

    def run(self, registry: "ModelRegistry") -> "CommandResult":
        versions = registry.list_versions()
        if not versions:
            return CommandResult(f"no version of {registry.model_name} is registered yet", [], "register")
        notes = [f"note: {text}; the alias counts, and the next move mends it" for text in contradictions(versions)]
        return CommandResult("\n".join([version_table(versions), *notes]), [version.to_dict() for version in versions])


class Show(Subcommand):
    """Show all there is to know about a version."""

    version: CliPositionalArg[str] = Field(description="number or stage")

    def run(self, registry: "ModelRegistry") -> "CommandResult":
        version = registry.get(self.version)
        return CommandResult(version_text(version), version.to_dict())


class Register(Subcommand):
    """Register the best run's model, or that of a run of your choice."""

    run_id: str | None = Field(None, alias="run", description="id of the run, instead of the best one")
    experiment_name: str | None = Field(
        None,
        description="where to look for runs; the only experiment that holds models, or else hyperopt_tuning, if left"
        " out",
    )
    metric: str | None = Field(
        None,
        description="what to rank them by; mean_cv_accuracy where all runs have it, or else best_val_accuracy, if left"
        " out",
    )
    mode: Literal["max", "min"] | None = Field(
        None, description="whether max or min is best; by the metric's name if left out"
    )

    @model_validator(mode="after")
    def _chosen_or_best(self) -> Self:
        if self.run_id and (self.experiment_name or self.metric or self.mode):
            raise ValueError("--run names the run; leave out --experiment-name, --metric and --mode, which choose one")
        return self

    def run(self, registry: "ModelRegistry") -> "CommandResult":
        before = {version.version for version in registry.list_versions()}
        if self.run_id:
            version = registry.get(registry.register_run(self.run_id))
        else:
            version = registry.get(registry.register_best_model(self.experiment_name, self.metric, mode=self.mode))
        did = "was registered before, from" if version.version in before else "registered from"
        text = f"v{version.version} of {version.name} {did} run {version.run_id}"
        chosen = self.metric or version.tags.get("selected_by", "")
        value = version.metrics.get(chosen)
        figure = "" if value is None else f" ({chosen} {value:.4g})"
        following = "" if version.stage == "Production" else f"promote {version.version} Production"
        return CommandResult(text + figure, version.to_dict(), following)


class Promote(Subcommand):
    """Put a version into Staging or Production, or into Archived or None."""

    version: CliPositionalArg[str] = Field(description="number, or the stage it is in")
    stage: CliPositionalArg[str] = Field(description="Staging, Production, Archived or None")
    reason: str | None = Field(None, description="why, for the history")
    data: Path | None = Field(
        None, description="labelled images to compare it on with the version in Production, one sub-folder a class"
    )
    force: bool = Field(False, description="promote it even if it is worse; needs a reason")

    def run(self, registry: "ModelRegistry") -> "CommandResult":
        return _promote_result(registry, self.version, self.stage, self.reason, force=self.force, data=self.data)


class Archive(Subcommand):
    """Put a version into Archived."""

    version: CliPositionalArg[str] = Field(description="number, or the stage it is in")
    reason: str | None = Field(None, description="why, for the history")

    def run(self, registry: "ModelRegistry") -> "CommandResult":
        return _promote_result(registry, self.version, "Archived", self.reason)


class Compare(Subcommand):
    """Compare versions on the same images, each with the first; an image of it goes to MLflow."""

    versions: CliPositionalArg[list[str]] = Field(description="numbers or stages")
    data: Path | None = Field(None, description="labelled images to compare them on, one sub-folder a class")

    def run(self, registry: "ModelRegistry") -> "CommandResult":
        table = registry.compare_models(self.versions, data=self.data, log_image=True)
        return CommandResult(comparison_table(table), _records(table.reset_index()))


class Rollback(Subcommand):
    """Put back what was in Production before."""

    reason: str | None = Field(None, description="why, for the history")

    def run(self, registry: "ModelRegistry") -> "CommandResult":
        version = registry.rollback(self.reason)
        why = version.transitions[-1].why
        return CommandResult(
            f"v{version.version} of {version.name} is in Production again ({why})", version.to_dict(), SERVE
        )


class History(Subcommand):
    """List every transition, oldest first."""

    def run(self, registry: "ModelRegistry") -> "CommandResult":
        table = registry.history()
        if table.empty:
            return CommandResult(f"no version of {registry.model_name} is registered yet", [], "register")
        shown = table.assign(
            time=table["time"].dt.strftime("%Y-%m-%d %H:%M:%S"),
            version="v" + table["version"].astype(str),
            gate=table["gate"].str.partition(":")[0],  # the figures, which are long, are for show and --json
        )
        return CommandResult(terminal.table(list(shown.columns), shown.to_numpy().tolist()), _records(table))


class Verify(Subcommand):
    """Check a version's files against the digest recorded at registration."""

    version: CliPositionalArg[str] = Field(description="number or stage")

    def run(self, registry: "ModelRegistry") -> "CommandResult":
        version = registry.verify(self.version)
        return CommandResult(
            f"v{version.version} of {version.name} is whole: digest {version.digest}", version.to_dict()
        )


class RegistrySettings(ScriptSettings):
    """Which registry, and what to do there."""

    model_config = environment("REGISTRY_")

    tracking_uri: str | None = Field(
        None, description="MLflow store; MLFLOW_TRACKING_URI, or mlflow.db here, if left out"
    )
    model_name: str = Field(MODEL, description="the registered model")
    list: CliSubCommand[List] = Field(description="list the versions")
    show: CliSubCommand[Show] = Field(description="show one version")
    register_: CliSubCommand[Register] = Field(alias="register", description="register the best run's model")
    promote: CliSubCommand[Promote] = Field(description="put a version into a stage")
    compare: CliSubCommand[Compare] = Field(description="compare versions with the first")
    rollback: CliSubCommand[Rollback] = Field(description="put back what was in Production before")
    history: CliSubCommand[History] = Field(description="list every transition")
    verify: CliSubCommand[Verify] = Field(description="check a version's files")
    archive: CliSubCommand[Archive] = Field(description="put a version into Archived")


def command_typed() -> tuple[RegistrySettings, Subcommand]:
    """Which registry, and what to do there, by the command line and the environment."""
    settings = parse(RegistrySettings, __doc__)
    command = subcommand(settings)
    if not isinstance(command, Subcommand):
        raise SettingsError(f"say what to do: {SUBCOMMANDS}; see --help")
    return settings, command


if __name__ == "__main__":  # --help and what is mistyped are answered before the seconds that MLflow takes to import
    read_first(command_typed)

from toolkit.bundle.files import DIGEST_TAG, verify_bundle
from toolkit.cli import terminal
from toolkit.cli.safe_names import printable
from toolkit.errors import (
    BundleError,
    NotRegistered,
    PromotionRefused,
    RegistryError,
    TrackingError,
    suggest,
)
from toolkit.registry.bundles import download, model_location, verify
from toolkit.registry.external_versions import adopt, recognised
from toolkit.registry.formatting import comparison_table, version_description, version_table, version_text
from toolkit.registry.run_selection import (
    Mode,
    chosen_run,
    is_finite,
    model_of,
    only_experiment,
    ranked_runs,
    usual_metric,
)
from toolkit.registry.stages import Stages, contradictions, rollback_candidates, utc_now, whoami
from toolkit.registry.versions import (
    ALIASES,
    METRICS_TAG,
    MISSING,
    MODEL_TAG,
    STAGE_TAG,
    STAGES,
    Stage,
    Transition,
    Version,
    read_aliases,
    read_version,
    read_versions,
    stage_named,
)
from toolkit.statistics.detection_power import describe_detectable_drops
from toolkit.tracking.connection import (
    ANSWER_SECONDS,
    AS_MODEL_TRAINING,
    MlflowClient,
    MlflowException,
    connect,
    mlflow_call,
    short_timeouts,
)

if TYPE_CHECKING:  # with torch, pandas and matplotlib, seconds of import that only loading and comparing need
    import pandas as pd
    from matplotlib.figure import Figure

    from toolkit.registry.comparison import Candidate
    from toolkit.registry.opening import LoadedModel
    from toolkit.registry.promotion_gate import GateResult

BY_HAND = "by hand"  # a run was chosen
MAX_REASON_LENGTH = 1000  # characters
LONGEST_GATE = 2000  # characters of what the gate found, in the history
HISTORY_COLUMNS = ("time", "version", "from", "to", "who", "why", "gate")

log = logging.getLogger(__name__)


class ModelRegistry:
    """The versions of one registered model: which exist, which serve, how good they are.

    Nothing is opened before the first call. Wherever a version is asked for, a number (``3``,
    ``"3"``, ``"v3"``) or a stage that holds one version (``"Production"``, ``"Staging"``, in any
    case) will do.

    Parameters
    ----------
    tracking_uri
        The MLflow store; ``MLFLOW_TRACKING_URI``, or else ``sqlite:///mlflow.db``, when None.
    model_name
        The registered model.
    clock
        The time in UTC, for the history.

    Examples
    --------
    A study or a training run has ended; its model becomes version 1 and goes into Production::

        registry = ModelRegistry()
        version = registry.register_best_model("hyperopt_tuning", "mean_cv_accuracy")
        registry.transition_model_stage(version, "Production", reason="first model")
        registry.load("Production").bundle.predict(images)
    """

    def __init__(
        self,
        tracking_uri: str | None = None,
        model_name: str = MODEL,
        *,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        if not MODEL_NAME.fullmatch(model_name):
            raise SettingsError(f"a model name is letters, digits, spaces and any of . _ - only, got {model_name!r}")
        self.tracking_uri = tracking_uri
        self.model_name = model_name
        self._clock = clock
        self._alarms: dict[int, str] = {}  # what the monitor can find by the held-out images of a version

    def __repr__(self) -> str:
        return f"ModelRegistry(tracking_uri={self.tracking_uri!r}, model_name={self.model_name!r})"

    def register_best_model(
        self,
        experiment_name: str | None = "hyperopt_tuning",
        metric: str | None = "mean_cv_accuracy",
        *,
        mode: Mode | None = None,
    ) -> int:
        """Make the best run's model a version, and return its number.

        A run whose bundle is broken is passed over with a warning. A run that is registered already
        gives the version it has.

        Parameters
        ----------
        experiment_name
            Where to look; finished ``final`` and ``study`` runs that hold a model count. When None: the
            only experiment that has such runs, or ``hyperopt_tuning`` where several have.
        metric
            What to rank by. Of equals the newer run is better. When None: ``mean_cv_accuracy`` where all
            runs have it, else ``best_val_accuracy``.
        mode
            ``max`` or ``min``; by the metric's name when None: less is better of a loss, an error
            or a time.

        Raises
        ------
        TrackingError
            There is no such experiment, or MLflow does not answer.
        RegistryError
            No run of it can be registered; the message says why.
        """
        passed_over = 0
        experiment_name = experiment_name or only_experiment(self._client)
        metric = metric or usual_metric(self._client, experiment_name)
        for run in ranked_runs(self._client, experiment_name, metric, mode):
            try:
                return self._register(run, experiment_name, metric)
            except BundleError as error:
                passed_over += 1
                log.warning("run %s is passed over: %s", run.info.run_id, error)
        raise RegistryError(
            f"no run of experiment {experiment_name!r} holds a whole model; {passed_over} were tried, the last is above"
        )

    def register_run(self, run_id: str) -> int:
        """Make a chosen run's model a version, and return its number; the one it has when it is registered already.

        Parameters
        ----------
        run_id
            MLflow's id of the run: 32 letters and digits.

        Raises
        ------
        RegistryError
            There is no such run, it is under way, or it holds no model.
        BundleError
            Its bundle is missing or altered.
        """
        run = chosen_run(self._client, run_id)
        with mlflow_call("read the experiment", timeout=ANSWER_SECONDS):
            experiment = self._client.get_experiment(run.info.experiment_id).name
        try:
            return self._register(run, experiment, None)
        except BundleError as error:
            raise BundleError(f"run {run_id} cannot be registered: {error}") from None

    def transition_model_stage(
        self,
        version: int | str,
        stage: str,
        *,
        reason: str | None = None,
        force: bool = False,
        data: str | Path | None = None,
    ) -> Version:
        """Move a version into ``Staging``, ``Production``, ``Archived`` or ``None``, in any case.

        Production and Staging hold one version each; the one that was there is Archived. What goes
        there is verified first, and what goes into Production is compared with what is there, as
        ``judge`` does. A version that is in the stage already stays, without an entry in the history.

        Parameters
        ----------
        version, stage
            What goes where.
        reason
            Why, for the history.
        force
            Whether it goes into Production although it is refused; the reason is then required.
        data
            A folder of labelled images to compare on, instead of those that both held out.

        Raises
        ------
        NotRegistered
            There is no such model yet.
        PromotionRefused
            The version is significantly worse than the one in Production, or nothing tells.
        RegistryError
            There is no such version or stage.
        BundleError
            The version's bundle is missing or altered.
        DataError
            The folder cannot be used.
        """
        target, why = stage_named(stage), _checked_reason(reason)
        if force and not why:
            raise SettingsError("to force a promotion needs a reason, which the history keeps")
        found = self.get(version)
        self._repair()
        found = self.get(found.version)
        if found.stage == target:
            return found
        if target in ALIASES:
            adopt(self._client, found)
        gate = ""
        if target == "Production":
            gate = self._gate(found, data, force=force)
        elif target in ALIASES:
            self.verify(found.version)
        self._stages.move(found, target, why, gate=gate)
        moved = self.get(found.version)
        if moved.stage != target:
            raise RegistryError(
                f"somebody else moved versions at the same moment: v{moved.version} was put into {target} and is in"
                f" {moved.stage} now"
            )
        return moved

    def check_promotion(self, version: int | str, *, data: str | Path | None = None) -> "GateResult | None":
        """Compare a version with the one in Production, without moving anything.

        Parameters
        ----------
        version
            The one that wants to be there.
        data
            A folder of labelled images to compare on, one sub-folder a class. Neither version
            should have been trained on them. The images that both held out when None.

        Returns
        -------
        What tells for and against it; None when nothing is in Production that it could be compared with.

        Raises
        ------
        BundleError
            The version's own bundle is missing or altered.
        """
        return self._check_gate(self.get(version), data)[1]

    def rollback(self, reason: str | None = None) -> Version:
        """Put back what was in Production before the present version.

        A second rollback goes further back instead of returning to what the first one removed, and
        none returns to what was archived while it was in Production. A version whose bundle is no
        longer whole is passed over with a warning.

        Raises
        ------
        NotRegistered
            There is no such model yet.
        RegistryError
            No earlier Production version is left.
        """
        detail = _checked_reason(reason)
        self._repair()
        versions = self._stages.versions()
        present = next((version for version in versions if version.stage == "Production"), None)
        why = f"rollback of v{present.version}" if present else "rollback to the last version in Production"
        for candidate in rollback_candidates(versions):
            try:
                self.verify(candidate.version)
            except BundleError as error:
                log.warning("v%d is passed over: %s", candidate.version, error)
                continue
            self._stages.move(candidate, "Production", f"{why}: {detail}" if detail else why, rollback=True)
            return self.get(candidate.version)
        before = f"before v{present.version} " if present else ""
        raise RegistryError(f"there is nothing to roll back to: no whole version of {self.model_name} was in Production"
                            f" {before}".rstrip())  # fmt: skip

    def compare_models(
        self, versions: Sequence[int | str], *, data: str | Path | None = None, log_image: bool = False
    ) -> "pd.DataFrame":
        """Versions side by side, one row each, the paired figures against the first.

        Parameters
        ----------
        versions
            Numbers or stages.
        data
            A folder of labelled images to measure all of them on, one sub-folder a class, instead
            of what each did on the images that all of them held out.
        log_image
            Whether to log what ``plot_comparison`` draws of the first ten, as ``comparison/*.png``
            in the run that the first version came from.

        Returns
        -------
        A table indexed by version, every interval of 95 %:

        - ``stage``, ``network``, ``image_size``, ``size_mb``, ``created``, ``mean_cv_accuracy``
        - ``images``: how many all figures are about, the same ones for all versions; where they held
          out none in common, a warning says so, and each figure is about the version's own
        - ``accuracy``, ``precision_weighted``, ``recall_weighted``, ``f1_weighted``, each with
          ``_low`` and ``_high``; ``calibration_error``
        - ``shared_images``, ``shared_accuracy``: on those that the first version was measured on too
        - ``difference`` with ``_low`` and ``_high``: of the accuracies on the shared images
        - ``gained``, ``lost``, ``p_value``: shared images that only this version, and only the
          first, classified rightly, and McNemar's exact test of the difference
        - ``latency_ms``: for one image, measured here and now, in turn with the others
        - ``setting.*``, ``data.*``: those in which the versions differ
        - ``held_out_images``, ``held_out_accuracy``: on all that each held out, where that is more
        """
        from toolkit.registry.comparison import side_by_side

        candidates = self._chosen(versions, data)
        if log_image:
            self._log_comparison_plot(candidates)
        return side_by_side(candidates)

    def plot_comparison(self, versions: Sequence[int | str], *, data: str | Path | None = None) -> "Figure":
        """What ``compare_models`` says of up to ten versions as an image: accuracy, classes, calibration."""
        from toolkit.registry.comparison import columns
        from toolkit.registry.plots import comparison_figure

        return comparison_figure(columns(self._chosen(versions, data)))

    def history(self) -> "pd.DataFrame":
        """Every transition of every version that exists, oldest first, registrations included.

        Returns
        -------
        Columns ``time`` (UTC), ``version``, ``from``, ``to``, ``who``, ``why``, and ``gate``: what a
        version that went into Production was compared with there.
        """
        import pandas as pd

        entries = [entry for version in self.list_versions() for entry in _whole_history(version)]
        rows = [
            (entry.time, entry.version, entry.source, entry.target, entry.who, entry.why, entry.gate)
            for entry in sorted(entries, key=lambda entry: (entry.time, entry.version))
        ]
        return pd.DataFrame(rows, columns=list(HISTORY_COLUMNS))

    def load(self, stage_or_version: int | str, *, cache: Path | None = None) -> "LoadedModel":
        """Fetch a version's bundle, check it against the digest of the version, and load it.

        Parameters
        ----------
        stage_or_version
            Which one.
        cache
            A folder that keeps fetched bundles by digest, so that a restart fetches nothing; what
            was altered there is noticed and fetched anew.

        Raises
        ------
        NotRegistered
            There is no such model, or nothing in that stage, yet.
        BundleError
            The bundle is missing, altered or cannot be loaded.
        """
        from toolkit.registry.opening import load_version

        return load_version(self._client, self.get(stage_or_version), cache)

    def list_versions(self) -> list[Version]:
        """Every version, newest first; none when the model is not registered yet."""
        try:
            return list(read_versions(self._client, self.model_name))
        except NotRegistered:
            return []

    def get(self, stage_or_version: int | str) -> Version:
        """One version, in one request and without its files, cheap enough to be asked every second.

        Of a version that another tool registered, what its training recorded is read too.

        Raises
        ------
        NotRegistered
            There is no such model, or nothing in that stage, yet.
        RegistryError
            There is no such version, or the word names neither a version nor a stage.
        """
        text = str(stage_or_version).strip()
        if number := re.fullmatch(r"[vV]?(\d{1,9})", text):
            return recognised(self._client, self._numbered(int(number[1])))
        if text.lower() not in (stage.lower() for stage in STAGES):
            raise RegistryError(f"{text!r} is neither the number of a version nor a stage ({suggest(STAGES, text)})")
        stage = stage_named(text)
        if stage not in ALIASES:
            raise RegistryError(f"several versions may be in stage {stage}; give the number of one")
        return recognised(self._client, self._in_stage(stage))

    def verify(self, stage_or_version: int | str) -> Version:
        """Check a version's bundle against the digest recorded at registration, without running it.

        Raises
        ------
        BundleError
            The first thing that is wrong, with the version.
        """
        version = self.get(stage_or_version)
        verify(self._client, version)
        return version

    def found_by_alarm(self, version: int) -> str:
        """What drops of accuracy the monitor can find with the version's held-out images, in a sentence."""
        if version not in self._alarms:
            baseline = self.load(version).bundle.baseline
            self._alarms[version] = describe_detectable_drops(baseline.accuracy, baseline.size)
        return self._alarms[version]

    @cached_property
    def _client(self) -> MlflowClient:
        return connect(self.tracking_uri)

    @cached_property
    def _stages(self) -> Stages:
        return Stages(self._client, self.model_name, self._clock)

    def _gate(self, newcomer: Version, data: str | Path | None, *, force: bool) -> str:
        """Let a version into Production or refuse it; what the history keeps about that."""
        while True:
            present, verdict = self._check_gate(newcomer, data)
            if verdict and not verdict.passed and not force:
                raise PromotionRefused(
                    f"v{newcomer.version} may not replace v{verdict.against}: {verdict}; to promote it all the same, "
                    "force it and give a reason"
                )
            if self._in_production() == present:  # or else another version got there meanwhile
                break
        if verdict is None:
            return "nothing to compare with" if present is None else f"v{present} could not be compared with"
        return f"{'passed' if verdict.passed else 'forced'}: {verdict}"[:LONGEST_GATE]

    def _check_gate(self, newcomer: Version, data: str | Path | None) -> "tuple[int | None, GateResult | None]":
        """The number of the version in Production, and how the newcomer compares with it."""
        from toolkit.registry.comparison import measured
        from toolkit.registry.opening import load_version
        from toolkit.registry.promotion_gate import check_promotion

        own = load_version(self._client, newcomer)
        self._alarms[newcomer.version] = describe_detectable_drops(
            own.bundle.baseline.accuracy, own.bundle.baseline.size
        )
        present = self._in_production()
        if present is None or present == newcomer.version:
            return present, None
        try:
            other = self.load(present)
        except BundleError as error:
            log.warning("it is compared with nothing, because %s", error)
            return present, None
        serving, candidate = measured([other, own], None if data is None else Path(data))
        return present, check_promotion(candidate, serving)

    def _in_production(self) -> int | None:
        try:
            return self._in_stage("Production").version
        except NotRegistered:
            return None

    def _chosen(self, versions: Sequence[int | str], data: str | Path | None) -> "list[Candidate]":
        if not versions:
            raise RegistryError("name the versions to compare, such as 1 2")
        chosen = {found.version: found for found in map(self.get, versions)}
        from toolkit.registry.comparison import measured, on_the_same
        from toolkit.registry.opening import load_version

        models = [load_version(self._client, version) for version in chosen.values()]
        candidates = measured(models, None if data is None else Path(data))
        if not on_the_same(candidates):
            log.warning(
                "%s have no image in common that all were measured on, so each figure is about the images of its"
                " own version; with --data FOLDER all are run on the same labelled images",
                " and ".join(f"v{version}" for version in chosen),
            )
        return candidates

    def _log_comparison_plot(self, candidates: "Sequence[Candidate]") -> None:
        from toolkit.registry.comparison import columns
        from toolkit.registry.plots import MOST_VERSIONS, comparison_figure

        drawn = columns(candidates[:MOST_VERSIONS])
        name, run_id = "_".join(column.name for column in drawn), candidates[0].version.run_id
        try:
            with mlflow_call("log the image", timeout=ANSWER_SECONDS):
                self._client.log_figure(run_id, comparison_figure(drawn), f"comparison/{name}.png")
        except TrackingError as error:  # who may only read can compare all the same
            log.warning("there is no image in MLflow: %s", error)

    def _repair(self) -> None:
        for change in self._stages.repair():
            log.warning("mended: %s", change)
        for alias, number in read_aliases(self._client, self.model_name).items():
            if alias not in ALIASES.values():
                continue
            try:
                if adopt(self._client, self._numbered(number)):
                    log.warning("adopted: v%d had been registered by another tool and is whole", number)
            except BundleError as error:
                log.warning("%s", error)

    def contradiction(self, version: Version) -> str:
        """What MLflow's own stages say otherwise than that a version is in its stage; empty when nothing does.

        The alias counts. A look takes one request, and none once MLflow has no stages any more.
        """
        latest = getattr(self._client, "get_latest_versions", None)
        if latest is None or version.stage not in ALIASES:
            return ""
        with mlflow_call("read MLflow's own stages", timeout=ANSWER_SECONDS), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # "stages will be removed"
            shown = [int(other.version) for other in latest(self.model_name, [version.stage])]
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
            f" mend that: {command_line('model_registry', f'promote {version.version} {stage}')}"
        )

    def _in_stage(self, stage: Stage) -> Version:
        with mlflow_call(f"read what is in {stage}", timeout=ANSWER_SECONDS):
            try:
                return read_version(self._client.get_model_version_by_alias(self.model_name, ALIASES[stage]))
            except MlflowException as error:
                if error.error_code not in (MISSING, "INVALID_PARAMETER_VALUE"):  # no such model, no such alias
                    raise
        versions = list(read_versions(self._client, self.model_name))
        though = next(
            (
                f", though MLflow's own stage says v{each.version}; the alias {ALIASES[stage]!r} counts, and"
                f" {command_line('model_registry', f'promote {each.version} {stage}')} sets it"
                for each in versions
                if each.mlflow_stage == stage
            ),
            "",
        )
        numbers = suggest(version.version for version in versions)
        raise NotRegistered(f"no version of {self.model_name} is in {stage} yet{though}; there are: {numbers}")

    def _numbered(self, number: int) -> Version:
        with mlflow_call(f"read version {number}", timeout=ANSWER_SECONDS):
            try:
                return read_version(self._client.get_model_version(self.model_name, str(number)))
            except MlflowException as error:
                if error.error_code not in (MISSING, "INVALID_PARAMETER_VALUE"):  # version 0 is an invalid parameter
                    raise
        numbers = [version.version for version in read_versions(self._client, self.model_name)]
        raise RegistryError(f"{self.model_name} has no version {number}; there are: {suggest(numbers, number)}")

    def _register(self, run: Any, experiment: str, metric: str | None) -> int:
        """The version of a run, created unless it has one; the metric is what it was chosen by, if by one."""
        for number in self._registered_from(run.info.run_id, ours=False):
            with suppress(BundleError):  # another tool registered something else, which stays as it is
                adopt(self._client, self._numbered(number))
        if registered := self._registered_from(run.info.run_id):
            return registered[0]
        created = self._create_version(run, model_of(run), experiment, metric)
        return self._resolve_duplicate(created, self._registered_from(run.info.run_id))

    def _registered_from(self, run_id: str, *, ours: bool = True) -> list[int]:
        """The versions that a run became, oldest first: those with a digest, or those of other tools."""
        with mlflow_call("look for the run among the versions", timeout=ANSWER_SECONDS):
            found = self._client.search_model_versions(f"name = '{self.model_name}' AND run_id = '{run_id}'")
        return sorted(int(version.version) for version in found if (DIGEST_TAG in version.tags) == ours)

    def _resolve_duplicate(self, created: int, registered: Sequence[int]) -> int:
        """The one version of a run, where another process registered it at the same moment: the oldest."""
        if created != registered[0]:
            with mlflow_call(f"take back version {created}", timeout=ANSWER_SECONDS):
                self._client.delete_model_version(self.model_name, str(created))
        return registered[0]

    def _create_version(self, run: Any, model_id: str | None, experiment: str, metric: str | None) -> int:
        if model_id is None:
            raise BundleError("it has the digest of a bundle, but no model")
        digest = run.data.tags[DIGEST_TAG]
        location = model_location(self._client, model_id)
        with download(self._client, location) as folder:
            card, baseline = verify_bundle(folder, digest)
        page = _page_of(self._client, run)
        choice, selection, ranked = f"chosen {BY_HAND}", {"selected_by": BY_HAND}, {}
        if metric:
            value = run.data.metrics[metric]
            choice, ranked = f"the best {metric} in {experiment}, {value:.4g}", {metric: value}
            selection = {"selected_by": metric, "selected_value": repr(value)}
        registration = Transition(0, self._clock(), "", "None", whoami(), f"{choice}: run {run.info.run_id}")
        measured = {name: item.value for name, item in card.metrics.items() if is_finite(item.value)}
        with suppress(MlflowException), short_timeouts():  # it exists already, or else the next call says what is wrong
            self._client.create_registered_model(self.model_name)
        with mlflow_call("register the model", timeout=ANSWER_SECONDS):
            created = self._client.create_model_version(
                self.model_name,
                # A server resolves models:/ itself. With a database this process does, and would look
                # in MLflow's global store instead of this one, so it is given what that resolves to.
                f"models:/{model_id}" if self._client.tracking_uri.startswith("http") else location,
                run_id=run.info.run_id,
                run_link=page or None,
                model_id=model_id,
                description=version_description(card, baseline, choice, _lineage(run, page)),
                tags={
                    DIGEST_TAG: digest,
                    MODEL_TAG: model_id,
                    STAGE_TAG: "None",
                    METRICS_TAG: json.dumps(measured | ranked),
                    "experiment": experiment,
                    **selection,
                    registration.key: registration.to_json(),
                },
            )
        return int(created.version)


def _checked_reason(reason: str | None) -> str:
    text = " ".join((reason or "").split())
    if len(text) > MAX_REASON_LENGTH:
        raise SettingsError(f"a reason must be at most {MAX_REASON_LENGTH} characters, got {len(text)}")
    return text


def _whole_history(version: Version) -> Iterator[Transition]:
    """The transitions of a version, with a registration where another tool registered it."""
    if not any(entry.source == "" for entry in version.transitions):
        yield Transition(version.version, version.created, "", "None", why="registered by another tool")
    yield from version.transitions


def _lineage(run: Any, page: str) -> str:
    """The run, with a link where there is a page, and the study or training that it is a part of."""
    itself = f"{run.data.tags.get('role', '')} run {run.info.run_name}, {run.info.run_id}".strip()
    parent = run.data.tags.get("mlflow.parentRunId")
    return (f"[{itself}]({page})" if page else itself) + (f", of run {parent}" if parent else "")


def _page_of(client: MlflowClient, run: Any) -> str:
    """The address of a run's page, empty when the store is a database."""
    if not client.tracking_uri.startswith("http"):
        return ""
    page = f"{client.tracking_uri.rstrip('/')}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    return f"{page}?{AS_MODEL_TRAINING}"


@dataclass(frozen=True)
class CommandResult:
    """What a verb has to say: a text for people, a value for programs, the command to type next."""

    text: str
    value: Any
    next: str = ""


def _promote_result(
    registry: ModelRegistry,
    which: str,
    stage: str,
    reason: str | None,
    *,
    force: bool = False,
    data: Path | None = None,
) -> CommandResult:
    before, former = registry.get(which), None
    with suppress(RegistryError):  # nothing is there, or nothing can be there: the transition says which
        former = registry.get(stage)
    version = registry.transition_model_stage(before.version, stage, reason=reason, force=force, data=data)
    following = {"Production": SERVE, "Staging": f"promote {version.version} Production"}.get(version.stage, "history")
    name = f"v{version.version} of {version.name}"
    if before.stage == version.stage:
        return CommandResult(f"{name} was in {version.stage} already", version.to_dict(), following)
    text = f"{name} moved from {before.stage} to {version.stage}"
    if former and former.version != version.version:
        text += f"; v{former.version} is Archived"
    if before.stage == "Production":
        text += "; no version is in Production now"
    if former and version.stage == "Production":
        text += f"\n{version.transitions[-1].gate}"
    if version.stage == "Production":
        text += f"\n{registry.found_by_alarm(version.version)}"
    return CommandResult(text, version.to_dict(), following)


def _records(table: "pd.DataFrame") -> list[Mapping[str, Any]]:
    records: list[Mapping[str, Any]] = json.loads(table.to_json(orient="records", date_format="iso", date_unit="us"))
    return records


def _command(settings: RegistrySettings, words: str) -> str:
    """A command to type next, with the registry that was chosen."""
    if not words or words == SERVE:
        return words
    uri = f" --tracking-uri {settings.tracking_uri}" if settings.tracking_uri else ""
    default = RegistrySettings.model_fields["model_name"].default
    name = f" --model-name '{settings.model_name}'" if settings.model_name != default else ""
    return f"{command_line('model_registry')}{uri}{name} {words}"


def main() -> None:
    """Run from the command line."""
    if not log.handlers:
        to_stderr = logging.StreamHandler()
        to_stderr.setFormatter(logging.Formatter(f"{program_name()}: warning: %(message)s"))
        log.addHandler(to_stderr)
    settings, command = command_typed()
    with terminal.muted(command.as_json):  # what is said on the way is no JSON
        answer = command.run(ModelRegistry(settings.tracking_uri, settings.model_name))
    if command.as_json:
        print(json.dumps(answer.value, indent=2))
        return
    print(printable(answer.text))
    if following := _command(settings, answer.next):
        print(f"next: {following}")


if __name__ == "__main__":
    run_script(main)

"""Register the best model, move it through stages, compare versions, and roll back to a former one.

    python model_registry.py register                       # best run of the experiment that holds models
    python model_registry.py register --experiment-name training --metric best_val_accuracy
    python model_registry.py register --run 927aad5e2dda486b896b25da52e199c5
    python model_registry.py list
    python model_registry.py promote 1 Production --reason "first model"
    python model_registry.py compare Production 2
    python model_registry.py promote 2 Production --reason "tuned"
    python model_registry.py rollback --reason "too many cats"
    python model_registry.py history

Further subcommands: show, verify and archive. Each takes --json for programs; --tracking-uri and
--model-name come before the subcommand. Everything is stored in MLflow, at MLFLOW_TRACKING_URI or in
mlflow.db in this folder: one version is in Production, the one that the alias `production` names,
and each move is recorded with its user and reason. A version is checked against the digest of its
bundle before it goes to Staging or Production, and at each load. Before it replaces another in
Production both are compared on the same images: a significantly worse one is refused, unless --force
and a --reason are given. --data photos/ compares them on images of your own, one sub-folder a class.
"""

from toolkit.cli.startup import begin_imports

if __name__ == "__main__":
    begin_imports()

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_settings import CliPositionalArg, CliSubCommand

from toolkit.cli.script_commands import command_line
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
    """Base of all subcommands."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    as_json: bool = Field(False, alias="json", description="print JSON, for programs")

    def run(self, registry: "ModelRegistry") -> "CommandResult":
        """Run the subcommand."""
        raise NotImplementedError


class List(Subcommand):
    """List the versions, newest first."""

    def run(self, registry: "ModelRegistry") -> "CommandResult":
        versions = registry.list_versions()
        if not versions:
            return CommandResult(f"no version of {registry.model_name} is registered yet", [], "register")
        notes = [f"note: {text}; the alias counts, and the next move repairs it" for text in contradictions(versions)]
        return CommandResult("\n".join([version_table(versions), *notes]), [version.to_dict() for version in versions])


class Show(Subcommand):
    """Show everything about a version."""

    version: CliPositionalArg[str] = Field(description="number or stage")

    def run(self, registry: "ModelRegistry") -> "CommandResult":
        version = registry.get(self.version)
        return CommandResult(version_text(version), version.to_dict())


class Register(Subcommand):
    """Register the best run's model, or that of a run of your choice."""

    run_id: str | None = Field(None, alias="run", description="id of the run, instead of the best one")
    experiment_name: str | None = Field(
        None, description="experiment of the runs; default: the only one that holds models, or hyperopt_tuning"
    )
    metric: str | None = Field(
        None,
        description="metric to rank them by; default: mean_cv_accuracy where all runs have it, or best_val_accuracy",
    )
    mode: Literal["max", "min"] | None = Field(
        None, description="whether max or min is best; default: by the metric's name"
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
        action = "was registered before, from" if version.version in before else "registered from"
        text = f"v{version.version} of {version.name} {action} run {version.run_id}"
        chosen = self.metric or version.tags.get("selected_by", "")
        value = version.metrics.get(chosen)
        score = "" if value is None else f" ({chosen} {value:.4g})"
        then = "" if version.stage == "Production" else f"promote {version.version} Production"
        return CommandResult(text + score, version.to_dict(), then)


class Promote(Subcommand):
    """Put a version into Staging or Production, or into Archived or None."""

    version: CliPositionalArg[str] = Field(description="number, or the stage it is in")
    stage: CliPositionalArg[str] = Field(description="Staging, Production, Archived or None")
    reason: str | None = Field(None, description="reason, for the history")
    data: Path | None = Field(
        None, description="labelled images to compare it on with the version in Production, one sub-folder a class"
    )
    force: bool = Field(False, description="promote it even if it is worse; needs a reason")

    def run(self, registry: "ModelRegistry") -> "CommandResult":
        before, former = registry.get(self.version), None
        with suppress(RegistryError):  # the stage is empty or unknown: the transition reports which
            former = registry.get(self.stage)
        version = registry.transition_model_stage(
            before.version, self.stage, reason=self.reason, force=self.force, data=self.data
        )
        then = {"Production": SERVE, "Staging": f"promote {version.version} Production"}.get(version.stage, "history")
        name = f"v{version.version} of {version.name}"
        if before.stage == version.stage:
            return CommandResult(f"{name} was in {version.stage} already", version.to_dict(), then)
        text = f"{name} moved from {before.stage} to {version.stage}"
        if former and former.version != version.version:
            text += f"; v{former.version} is Archived"
        if before.stage == "Production":
            text += "; no version is in Production now"
        if former and version.stage == "Production":
            text += f"\n{version.transitions[-1].gate}"
        if version.stage == "Production":
            text += f"\n{registry.detectable_drops(version.version)}"
        return CommandResult(text, version.to_dict(), then)


class Archive(Subcommand):
    """Put a version into Archived."""

    version: CliPositionalArg[str] = Field(description="number, or the stage it is in")
    reason: str | None = Field(None, description="reason, for the history")

    def run(self, registry: "ModelRegistry") -> "CommandResult":
        words = {"version": self.version, "stage": "Archived", "reason": self.reason}
        return Promote.model_validate(words).run(registry)


class Compare(Subcommand):
    """Compare versions on the same images, each with the first; an image of it goes to MLflow."""

    versions: CliPositionalArg[list[str]] = Field(description="numbers or stages")
    data: Path | None = Field(None, description="labelled images to compare them on, one sub-folder a class")

    def run(self, registry: "ModelRegistry") -> "CommandResult":
        table = registry.compare_models(self.versions, data=self.data, log_image=True)
        return CommandResult(comparison_table(table), _records(table.reset_index()))


class Rollback(Subcommand):
    """Roll back to the former version in Production."""

    reason: str | None = Field(None, description="reason, for the history")

    def run(self, registry: "ModelRegistry") -> "CommandResult":
        version = registry.rollback(self.reason)
        text = f"v{version.version} of {version.name} is in Production again ({version.transitions[-1].reason})"
        return CommandResult(text, version.to_dict(), SERVE)


class History(Subcommand):
    """List every transition, oldest first."""

    def run(self, registry: "ModelRegistry") -> "CommandResult":
        table = registry.history()
        if table.empty:
            return CommandResult(f"no version of {registry.model_name} is registered yet", [], "register")
        shown = table.assign(
            time=table["time"].dt.strftime("%Y-%m-%d %H:%M:%S"),
            version="v" + table["version"].astype(str),
            gate=table["gate"].str.partition(":")[0],  # the numbers, which are long, are for show and --json
        )
        return CommandResult(terminal.table(list(shown.columns), shown.to_numpy().tolist()), _records(table))


class Verify(Subcommand):
    """Check a version's files against the digest recorded at registration."""

    version: CliPositionalArg[str] = Field(description="number or stage")

    def run(self, registry: "ModelRegistry") -> "CommandResult":
        version = registry.verify(self.version)
        text = f"v{version.version} of {version.name} is intact: digest {version.digest}"
        return CommandResult(text, version.to_dict())


class RegistrySettings(ScriptSettings):
    """The registry and the subcommand."""

    model_config = environment("REGISTRY_")

    tracking_uri: str | None = Field(None, description="MLflow store; default: MLFLOW_TRACKING_URI, or mlflow.db here")
    model_name: str = Field(MODEL, description="the registered model")
    list: CliSubCommand[List] = Field(description="list the versions")
    show: CliSubCommand[Show] = Field(description="show one version")
    register_: CliSubCommand[Register] = Field(alias="register", description="register the best run's model")
    promote: CliSubCommand[Promote] = Field(description="put a version into a stage")
    compare: CliSubCommand[Compare] = Field(description="compare versions with the first")
    rollback: CliSubCommand[Rollback] = Field(description="roll back to the former version in Production")
    history: CliSubCommand[History] = Field(description="list every transition")
    verify: CliSubCommand[Verify] = Field(description="check a version's files")
    archive: CliSubCommand[Archive] = Field(description="put a version into Archived")


def command_typed() -> tuple[RegistrySettings, Subcommand]:
    """Read the registry and the subcommand from the command line and the environment."""
    settings = parse(RegistrySettings, __doc__)
    command = subcommand(settings)
    if not isinstance(command, Subcommand):
        raise SettingsError(f"a subcommand is required: {SUBCOMMANDS}; see --help")
    return settings, command


if __name__ == "__main__":  # answers --help and wrong flags before the slow import of MLflow
    read_first(command_typed)

from toolkit.cli import terminal
from toolkit.cli.safe_names import printable
from toolkit.errors import BundleError, NotRegistered, PromotionRefused, RegistryError, TrackingError, suggest
from toolkit.registry.bundles import load_version, verify
from toolkit.registry.formatting import comparison_table, version_table, version_text
from toolkit.registry.registration import adopt, recognised, register
from toolkit.registry.run_selection import Mode, chosen_run, only_experiment, ranked_runs, usual_metric
from toolkit.registry.stages import Stages, contradiction, contradictions, rollback_candidates, utc_now
from toolkit.registry.versions import (
    ALIASES,
    STAGES,
    Version,
    newest_version,
    numbered_version,
    read_aliases,
    read_versions,
    stage_named,
    version_in_stage,
)
from toolkit.statistics.detection_power import describe_detectable_drops
from toolkit.tracking.connection import ANSWER_SECONDS, MlflowClient, connect, mlflow_call

if TYPE_CHECKING:  # with torch, pandas and matplotlib, seconds of import that only loading and comparing need
    import pandas as pd
    from matplotlib.figure import Figure

    from toolkit.registry.bundles import LoadedModel
    from toolkit.registry.comparison import Candidate
    from toolkit.registry.promotion_gate import GateResult

MAX_REASON_LENGTH = 1000  # characters
MAX_GATE_LENGTH = 2000  # characters of the gate's result in the history
HISTORY_COLUMNS = ("time", "version", "from", "to", "user", "reason", "gate")

log = logging.getLogger(__name__)


class ModelRegistry:
    """The versions of one registered model: registration, stages, comparison, history.

    Nothing is opened before the first call. A version is given by its number (``3``, ``"3"``,
    ``"v3"``) or by a stage that holds one version (``"Production"``, ``"Staging"``, in any case).

    Parameters
    ----------
    tracking_uri
        The MLflow store; None: ``MLFLOW_TRACKING_URI``, or ``sqlite:///mlflow.db``.
    model_name
        The registered model.
    clock
        Gives the time in UTC, for the history.

    Examples
    --------
    The model of a finished study or training becomes version 1 and goes into Production::

        registry = ModelRegistry()
        version = registry.register_best_model("hyperopt_tuning", "mean_cv_accuracy")
        registry.transition_model_stage(version, "Production", reason="first model")
        registry.load("Production").bundle.predict(images)
    """

    def __init__(
        self, tracking_uri: str | None = None, model_name: str = MODEL, *, clock: Callable[[], datetime] = utc_now
    ) -> None:
        if not MODEL_NAME.fullmatch(model_name):
            raise SettingsError(f"a model name is letters, digits, spaces and any of . _ - only, got {model_name!r}")
        self.tracking_uri = tracking_uri
        self.model_name = model_name
        self._clock = clock
        self._drops: dict[int, str] = {}  # by version: the sentence of detectable_drops

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

        Runs with a broken bundle are skipped with a warning. The version of a run that is registered already is
        returned as it is.

        Parameters
        ----------
        experiment_name
            The experiment with the runs; finished ``final`` and ``study`` runs with a model count. None: the
            only experiment that has such runs, or ``hyperopt_tuning`` where several have.
        metric
            The metric to rank by; of equal runs the newer is better. None: ``mean_cv_accuracy`` where all
            runs have it, else ``best_val_accuracy``.
        mode
            ``max`` or ``min``; None: by the metric's name, ``min`` for a loss, an error or a time.

        Raises
        ------
        TrackingError
            There is no such experiment, or MLflow does not answer.
        RegistryError
            No run of it can be registered; the message has the reason.
        """
        n_broken = 0
        experiment_name = experiment_name or only_experiment(self._client)
        metric = metric or usual_metric(self._client, experiment_name)
        for run in ranked_runs(self._client, experiment_name, metric, mode):
            try:
                return register(self._client, self.model_name, run, metric, self._clock())
            except BundleError as error:
                n_broken += 1
                log.warning("run %s is skipped: %s", run.info.run_id, error)
        raise RegistryError(
            f"no run of experiment {experiment_name!r} holds an intact model; {n_broken} were tried, the last is above"
        )

    def register_run(self, run_id: str) -> int:
        """Make the model of a run a version, unless it is one, and return its number.

        Parameters
        ----------
        run_id
            MLflow's id of the run: 32 letters and digits.

        Raises
        ------
        RegistryError
            There is no such run, it is not finished, or it holds no model.
        BundleError
            Its bundle is missing or altered.
        """
        run = chosen_run(self._client, run_id)
        try:
            return register(self._client, self.model_name, run, None, self._clock())
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

        Production and Staging hold one version each; the former one is Archived. A version is verified before
        it goes there, and before it goes into Production it is compared with the champion, as
        ``check_promotion`` does. A version that is in the stage already stays, without an entry in the history.

        Parameters
        ----------
        version
            Number or stage of the version.
        stage
            The new stage.
        reason
            The reason, for the history; at most 1000 characters.
        force
            Promote the version although the gate refuses it; requires a reason.
        data
            A folder of labelled images to compare on; None: the images that both held out.

        Returns
        -------
        The version after the move.

        Raises
        ------
        NotRegistered
            There is no such model yet.
        PromotionRefused
            The version is significantly worse than the champion, or cannot be compared.
        RegistryError
            There is no such version or stage.
        BundleError
            The version's bundle is missing or altered.
        DataError
            The folder cannot be used.
        """
        target, reason = stage_named(stage), _checked_reason(reason)
        if force and not reason:
            raise SettingsError("a forced promotion needs a reason, for the history")
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
        self._stages.move(found, target, reason, gate=gate)
        moved = self.get(found.version)
        if moved.stage != target:
            now = f"v{moved.version} was put into {target} and is in {moved.stage} now"
            raise RegistryError(f"another process moved versions at the same moment: {now}")
        return moved

    def check_promotion(self, version: int | str, *, data: str | Path | None = None) -> "GateResult | None":
        """Compare a version with the champion, the one in Production, without moving anything.

        Parameters
        ----------
        version
            The challenger.
        data
            A folder of labelled images to compare on, one sub-folder a class, that neither version was
            trained on. None: the images that both held out.

        Returns
        -------
        Objections and remarks; None when there is no champion that it could be compared with.

        Raises
        ------
        BundleError
            The version's own bundle is missing or altered.
        """
        return self._check_gate(self.get(version), data)[1]

    def rollback(self, reason: str | None = None) -> Version:
        """Roll back to the version that was in Production before the present one.

        A second rollback goes further back instead of returning to the version that the first one removed,
        and none returns to a version that was archived while it was in Production. Versions with a broken
        bundle are skipped with a warning.

        Parameters
        ----------
        reason
            The reason, for the history; at most 1000 characters.

        Returns
        -------
        The version that is in Production now.

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
        champion = next((version for version in versions if version.stage == "Production"), None)
        text = f"rollback of v{champion.version}" if champion else "rollback to the last version in Production"
        for candidate in rollback_candidates(versions):
            try:
                self.verify(candidate.version)
            except BundleError as error:
                log.warning("v%d is skipped: %s", candidate.version, error)
                continue
            self._stages.move(candidate, "Production", f"{text}: {detail}" if detail else text, rollback=True)
            return self.get(candidate.version)
        intact = f"no intact version of {self.model_name} was in Production"
        before = f" before v{champion.version}" if champion else ""
        raise RegistryError(f"there is nothing to roll back to: {intact}{before}")

    def compare_models(
        self, versions: Sequence[int | str], *, data: str | Path | None = None, log_image: bool = False
    ) -> "pd.DataFrame":
        """Versions side by side, one row each, with paired metrics against the first.

        Parameters
        ----------
        versions
            Numbers or stages.
        data
            A folder of labelled images to run all of them on, one sub-folder a class; None: the images that
            all of them held out.
        log_image
            Whether to log ``plot_comparison`` of the first ten as ``comparison/*.png`` in the run of the
            first version.

        Returns
        -------
        A table indexed by version, every interval of 95 %:

        - ``stage``, ``network``, ``image_size``, ``size_mb``, ``created``, ``mean_cv_accuracy``
        - ``images``: number of images behind all metrics, the same ones for all versions; where they held
          out none in common, a warning says so, and each version is measured on its own
        - ``accuracy``, ``precision_weighted``, ``recall_weighted``, ``f1_weighted``, each with
          ``_low`` and ``_high``; ``calibration_error``
        - ``shared_images``, ``shared_accuracy``: on the images that the first version was measured on too
        - ``difference`` with ``_low`` and ``_high``: of the accuracies on the shared images
        - ``gained``, ``lost``, ``p_value``: shared images that only this version, and only the
          first, classified rightly, and McNemar's exact test of the difference
        - ``latency_ms``: milliseconds for one image, measured on this machine, in turn with the others
        - ``setting.*``, ``data.*``: settings and data in which the versions differ
        - ``held_out_images``, ``held_out_accuracy``: on all images that each held out, where these are more
        """
        from toolkit.registry.comparison import comparison_frame

        candidates = self._chosen(versions, data)
        if log_image:
            self._log_comparison_plot(candidates)
        return comparison_frame(candidates)

    def plot_comparison(self, versions: Sequence[int | str], *, data: str | Path | None = None) -> "Figure":
        """``compare_models`` as a figure: accuracy, classes, calibration.

        Parameters
        ----------
        versions
            Numbers or stages of up to ten versions.
        data
            A folder of labelled images to compare them on; None for the held-out images that they share.
        """
        from toolkit.registry.plots import comparison_figure

        candidates = self._chosen(versions, data)
        return comparison_figure({f"v{each.version.version}": each.baseline for each in candidates})

    def history(self) -> "pd.DataFrame":
        """Every transition of every version that exists, oldest first, registrations included.

        Returns
        -------
        Columns ``time`` (UTC), ``version``, ``from``, ``to``, ``user``, ``reason``, and ``gate``: the result of the
        promotion gate for a version that went into Production.
        """
        import pandas as pd

        entries = [entry for version in self.list_versions() for entry in version.history]
        rows = [
            (each.time, each.version, each.source, each.target, each.user, each.reason, each.gate) for each in entries
        ]
        return pd.DataFrame(sorted(rows), columns=list(HISTORY_COLUMNS))

    def load(self, stage_or_version: int | str, *, cache: Path | None = None) -> "LoadedModel":
        """Download a version's bundle, check it against the digest of the version, and load it.

        Parameters
        ----------
        stage_or_version
            Number or stage of the version.
        cache
            A folder of downloaded bundles by digest, so that a restart downloads nothing; altered ones are
            detected and downloaded again.

        Raises
        ------
        NotRegistered
            There is no such model, or nothing in that stage, yet.
        BundleError
            The bundle is missing, altered or cannot be loaded.
        """
        return load_version(self._client, self.get(stage_or_version), cache)

    def list_versions(self) -> list[Version]:
        """Every version, newest first; none when the model is not registered yet."""
        try:
            return list(read_versions(self._client, self.model_name))
        except NotRegistered:
            return []

    def newest(self) -> Version | None:
        """The version registered last, without its files; None when there is none yet."""
        return newest_version(self._client, self.model_name)

    def get(self, stage_or_version: int | str) -> Version:
        """One version, in one request and without its files, cheap enough for every second.

        For a version that another tool registered, the records of its training are read too.

        Parameters
        ----------
        stage_or_version
            Number of the version, as 3, ``"3"`` or ``"v3"``, or its stage.

        Raises
        ------
        NotRegistered
            There is no such model, or nothing in that stage, yet.
        RegistryError
            There is no such version, or the text is neither a number nor a stage.
        """
        text = str(stage_or_version).strip()
        if number := re.fullmatch(r"[vV]?(\d{1,9})", text):
            return recognised(self._client, numbered_version(self._client, self.model_name, int(number[1])))
        if text.capitalize() not in STAGES:
            raise RegistryError(f"{text!r} is neither the number of a version nor a stage ({suggest(STAGES, text)})")
        stage = stage_named(text)
        if stage not in ALIASES:
            raise RegistryError(f"several versions may be in stage {stage}; give the number of one")
        return recognised(self._client, version_in_stage(self._client, self.model_name, stage))

    def verify(self, stage_or_version: int | str) -> Version:
        """Check a version's bundle against the digest recorded at registration, without running it.

        Parameters
        ----------
        stage_or_version
            Number or stage of the version.

        Raises
        ------
        BundleError
            The bundle is missing or altered; the message names the version.
        """
        version = self.get(stage_or_version)
        verify(self._client, version)
        return version

    def detectable_drops(self, version: int) -> str:
        """A sentence about the drops of accuracy that the monitor can detect with the version's held-out images."""
        if version not in self._drops:
            baseline = self.load(version).bundle.baseline
            self._drops[version] = describe_detectable_drops(baseline.accuracy, baseline.size)
        return self._drops[version]

    def contradiction(self, version: Version) -> str:
        """A sentence about MLflow's own stages that contradict a version's alias; empty when none do."""
        return contradiction(self._client, version)

    @cached_property
    def _client(self) -> MlflowClient:
        return connect(self.tracking_uri)

    @cached_property
    def _stages(self) -> Stages:
        return Stages(self._client, self.model_name, self._clock)

    def _gate(self, challenger: Version, data: str | Path | None, *, force: bool) -> str:
        """Let a version into Production or refuse it; the text for the history."""
        while True:
            champion, result = self._check_gate(challenger, data)
            if result and not result.passed and not force:
                moved = f"v{challenger.version} may not replace v{result.against}: {result}"
                raise PromotionRefused(f"{moved}; to promote it all the same, force it and give a reason")
            if self._in_production() == champion:  # otherwise another version was promoted meanwhile
                break
        if result is None:
            return "nothing to compare with" if champion is None else f"v{champion} could not be compared with"
        return f"{'passed' if result.passed else 'forced'}: {result}"[:MAX_GATE_LENGTH]

    def _check_gate(self, challenger: Version, data: str | Path | None) -> "tuple[int | None, GateResult | None]":
        """The number of the champion, and the result of the gate."""
        from toolkit.registry.comparison import measured
        from toolkit.registry.promotion_gate import check_promotion

        own = load_version(self._client, challenger)
        baseline = own.bundle.baseline
        self._drops[challenger.version] = describe_detectable_drops(baseline.accuracy, baseline.size)
        champion = self._in_production()
        if champion is None or champion == challenger.version:
            return champion, None
        try:
            other = self.load(champion)
        except BundleError as error:
            log.warning("it is compared with nothing, because %s", error)
            return champion, None
        before, after = measured([other, own], None if data is None else Path(data))
        return champion, check_promotion(after, before)

    def _in_production(self) -> int | None:
        try:
            return version_in_stage(self._client, self.model_name, "Production").version
        except NotRegistered:
            return None

    def _chosen(self, versions: Sequence[int | str], data: str | Path | None) -> "list[Candidate]":
        if not versions:
            raise RegistryError("name the versions to compare, such as 1 2")
        chosen = {found.version: found for found in map(self.get, versions)}
        from toolkit.registry.comparison import measured
        from toolkit.registry.mcnemar import are_same_images

        models = [load_version(self._client, version) for version in chosen.values()]
        candidates = measured(models, None if data is None else Path(data))
        if not are_same_images([candidate.baseline for candidate in candidates]):
            log.warning(
                "%s have no image in common that all were measured on, so each is measured on its own images;"
                " with --data FOLDER all are run on the same labelled images",
                " and ".join(f"v{version}" for version in chosen),
            )
        return candidates

    def _log_comparison_plot(self, candidates: "Sequence[Candidate]") -> None:
        from toolkit.registry.plots import MAX_VERSIONS, comparison_figure

        drawn = {f"v{each.version.version}": each.baseline for each in candidates[:MAX_VERSIONS]}
        name, run_id = "_".join(drawn), candidates[0].version.run_id
        try:
            with mlflow_call("log the plot", timeout=ANSWER_SECONDS):
                self._client.log_figure(run_id, comparison_figure(drawn), f"comparison/{name}.png")
        except TrackingError as error:  # a user without write access can compare all the same
            log.warning("there is no plot in MLflow: %s", error)

    def _repair(self) -> None:
        for change in self._stages.repair():
            log.warning("repaired: %s", change)
        aliases = read_aliases(self._client, self.model_name)
        for number in [aliases[alias] for alias in ALIASES.values() if alias in aliases]:
            try:
                if adopt(self._client, numbered_version(self._client, self.model_name, number)):
                    log.warning("adopted: v%d had been registered by another tool and is intact", number)
            except BundleError as error:
                log.warning("%s", error)


def _checked_reason(reason: str | None) -> str:
    text = " ".join((reason or "").split())
    if len(text) > MAX_REASON_LENGTH:
        raise SettingsError(f"a reason must be at most {MAX_REASON_LENGTH} characters, got {len(text)}")
    return text


@dataclass(frozen=True)
class CommandResult:
    """The result of a subcommand: a text for people, a value for programs, and the next command."""

    text: str
    value: Any
    next: str = ""


def _records(table: "pd.DataFrame") -> list[Mapping[str, Any]]:
    records: list[Mapping[str, Any]] = json.loads(table.to_json(orient="records", date_format="iso", date_unit="us"))
    return records


def _command(settings: RegistrySettings, words: str) -> str:
    """A command of this script, with the flags of the chosen registry."""
    uri = f" --tracking-uri {settings.tracking_uri}" if settings.tracking_uri else ""
    name = f" --model-name '{settings.model_name}'" if settings.model_name != MODEL else ""
    return f"{command_line('model_registry')}{uri}{name} {words}"


def main() -> None:
    """Run from the command line."""
    if not log.handlers:
        to_stderr = logging.StreamHandler()
        to_stderr.setFormatter(logging.Formatter(f"{program_name()}: warning: %(message)s"))
        log.addHandler(to_stderr)
    settings, command = command_typed()
    with terminal.muted(command.as_json):  # progress messages are no JSON
        result = command.run(ModelRegistry(settings.tracking_uri, settings.model_name))
    if command.as_json:
        print(json.dumps(result.value, indent=2))
        return
    print(printable(result.text))
    if result.next:
        print(f"next: {result.next if result.next == SERVE else _command(settings, result.next)}")


if __name__ == "__main__":
    run_script(main)

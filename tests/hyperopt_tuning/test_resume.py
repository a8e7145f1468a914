"""A study is resumed with other stop conditions, and refused when its trials depend on something that has changed."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from hyperopt_tuning import TuneSettings, report, start_study, tune
from support.colours import colour_image
from support.trials import run_trial
from support.tuning_studies import settings
from toolkit.errors import DataError, SettingsError, TrainingError
from toolkit.tuning.trial import Trial


def refusal(chosen):
    with pytest.raises(SettingsError) as error:
        tune(chosen)
    return str(error.value)


def test_a_changed_study_is_not_resumed(quickest, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(quickest.colours, folder)
    start_study(settings(quickest, "changed", data=str(folder), study_name="mine")).journal.close()
    start = "study mine cannot be resumed: "
    end = "; --warm-start mine starts another one that knows its trials"
    changed = refusal(TuneSettings(resume="mine", folds=3, seed=1))
    assert changed == f"{start}folds was 2 and is 3; seed was 0 and is 1{end}"
    Path("space.yaml").write_text("dropout: [0.1, 0.2]")
    changed = refusal(TuneSettings(resume="mine", space=Path("space.yaml"), preset="quick"))
    assert changed == f"{start}dropout was 0.1 to 0.3 and is one of 0.1, 0.2{end}"
    Path("first.yaml").write_text("- {epochs: 1}")
    changed = refusal(TuneSettings(resume="mine", initial_points=Path("first.yaml")))
    assert changed == f"{start}--initial-points names other settings{end}"
    (folder / "red" / "another.png").write_bytes(colour_image("red", 5000, 20))
    fingerprint = r"[0-9a-f]{8,}"
    changed = refusal(TuneSettings(resume="mine"))
    assert re.fullmatch(f"{start}data_fingerprint was {fingerprint} and is {fingerprint}{end}", changed)


def test_a_resumed_study_may_have_other_stop_conditions(quickest, capsys):
    chosen = settings(quickest, "two words", study_name="mine", prune=False)
    start_study(chosen).journal.close()
    outcome = tune(TuneSettings(resume="last", max_trials=50, study_patience=2))
    study = outcome.study
    assert study.best is not None
    assert len(study.trials) == study.trials.index(study.best) + 3
    text = f"none better than the best in 2 trials, after {len(study.trials)} of 50 trials\n"
    assert text in capsys.readouterr().out
    words = shlex.split(report(outcome).splitlines()[-1].removeprefix("next: "))
    assert words[-4:] == ["--experiment-name", "two words", "--metric", "mean_cv_accuracy"]
    assert refusal(TuneSettings(resume="mine")) == (
        "study mine is finished; --warm-start mine starts another one that knows its trials"
    )
    assert refusal(chosen).endswith("there is a journal studies/mine/journal.jsonl already")


def test_a_warm_start_begins_with_the_best_and_knows_the_other_trials(quickest, capsys):
    """The two trials of the second study run at the same time."""
    context = start_study(settings(quickest, "fork", study_name="first"))
    with context.journal:
        _, best, _ = (run_trial(context.study, accuracy) for accuracy in (0.5, 0.9, 0.7))
    study = tune(
        settings(quickest, "fork", parallel=2, prune=False, warm_start="first", folds=3, study_name="second")
    ).study
    assert "3 of 3 trials of the former study lie in this space and are known here\n" in capsys.readouterr().out
    first, other = sorted(study.trials, key=lambda trial: trial.number)
    assert first.settings == best.settings
    assert [(trial.state, len(trial.folds)) for trial in (first, other)] == [("complete", 3)] * 2
    assert [run.info.status for run in quickest.runs("fork", "trial")] == ["FINISHED"] * 2


def test_a_study_is_written_by_one_search(quickest):
    with start_study(settings(quickest, "two", study_name="both")).journal:
        assert refusal(TuneSettings(resume="both")).startswith(
            "the journal studies/both/journal.jsonl is being written by "
        )


def test_a_study_of_failures_is_refused(quickest):
    context = start_study(settings(quickest, "hopeless", study_name="hopeless"))
    with context.journal:
        for number in range(2):
            context.study.tell(Trial(number, context.study.ask().settings, "failed", reason="the loss became nan"))
    with pytest.raises(TrainingError, match=r"^all 2 trials failed; the first: the loss became nan$"):
        tune(TuneSettings(resume="hopeless"))
    (study,) = quickest.runs("hopeless", "study")
    assert study.info.status == "FAILED"
    assert study.data.tags["failure"].startswith("all 2 trials failed; the first: ")
    assert [trial["state"] for trial in quickest.json(study, "trials.json")] == ["failed", "failed"]
    assert not study.outputs.model_outputs


# --- refused before anything is written ---------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "content", "message"),
    [
        ("space", b"epochs: {low: 20, high: 10}", "epochs: low must be less than high, got 20 and 10"),
        ("space", None, "cannot be read: No such file or directory"),
        ("initial_points", b"- {epochs: 2}\n- {epoch: 1}", "entry 2: epoch: is not searched; there are: epochs, "),
        ("initial_points", b"\xff\xfe\x00", "is not text in UTF-8"),
    ],
)
def test_errors_of_files_name_the_file(quickest, option, content, message):
    if content is not None:
        Path("a.yaml").write_bytes(content)
    assert refusal(settings(quickest, "refused", **{option: Path("a.yaml")})).startswith(f"a.yaml: {message}")
    assert quickest.runs("refused", "study") == []


def test_too_few_images_are_refused(quickest):
    with pytest.raises(DataError, match=r"^class '\w+' has \d+ images to cross-validate on, fewer than the 14 folds"):
        tune(settings(quickest, "refused", folds=14))
    assert quickest.runs("refused", "study") == []
    assert not Path("studies").exists()

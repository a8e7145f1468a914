"""A folder of studies: each is resumed as it was, and found by its name or as the last one."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from support.disk import full_disk
from support.trials import ended, run_trial
from toolkit.errors import DataError, SettingsError
from toolkit.tuning.journal import Journal
from toolkit.tuning.space import FULL, QUICK, Choice, Uniform
from toolkit.tuning.study import OTHER_VERSION, Study, StudyConfig
from toolkit.tuning.study_storage import (
    claimed_name,
    differences,
    journal_of,
    load_logits,
    read_study,
    remove_logits,
    resolve_study,
    save_logits,
    studies_in,
)


def config(**changes):
    """A configuration with every field set."""
    former = Study(StudyConfig(FULL, seed=9))
    for state in ("complete", "pruned", "failed"):
        run_trial(former, 0.5, state)
    values = {
        "space": {**FULL, "label_smoothing": Uniform(0.0, 0.2), "weight_decay": Choice((0.0, 1e-4))},
        "seed": 3,
        "n_startup_trials": 4,
        "prune": True,
        "initial_points": [{"epochs": 12, "label_smoothing": 0.1}],
        "earlier": former.trials,
        "data_identity": {"data": "Blumen/Gärten", "data_fingerprint": "0123"},
        "settings": {"preset": "full", "time_budget": None, "folds": 5, "data": ["a", "b"]},
    }
    return StudyConfig(**{**values, **changes})


# --- what a study depends on --------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"space": QUICK, "prune": False, "initial_points": [], "earlier": []}])
def test_json_round_trip(changes):
    before = config(**changes)
    again = StudyConfig.from_json(json.loads(json.dumps(before.json())))
    assert again == before
    assert repr(again) == repr(before)  # in which 3 and 3.0 differ


def test_every_field_decides_on_the_proposals():
    """The same proposals as one that is made by hand, and different ones where any part of it differs."""
    one = config(earlier=[])

    def proposals(study):
        found = []
        for number in range(6):
            found.append(study.ask())
            study.tell(ended(found[-1], number / 10))
        return found

    expected = proposals(Study(StudyConfig(one.space, 3, 4, prune=True, initial_points=one.initial_points)))
    assert proposals(Study(one)) == expected
    for changes in (
        {"space": FULL, "initial_points": []}, {"seed": 4}, {"n_startup_trials": 5}, {"prune": False},
        {"initial_points": [{"epochs": 13}]},
        {"earlier": [run_trial(Study(StudyConfig(one.space, seed=1)), 0.5) for _ in range(5)]},
    ):  # fmt: skip
        assert proposals(Study(config(**{"earlier": [], **changes}))) != expected


def broken_configs():
    values = config().json()
    for name in ("space", "seed", "n_startup_trials", "prune", "earlier"):
        yield f"without {name}", {key: value for key, value in values.items() if key != name}
    yield "with more", {**values, "pruner": "hyperband"}
    yield "nothing", {}
    for space in ({"epochs": 5}, {"epochs": {"low": 3}}, {"epochs": None}, 5):
        yield f"space {space}", {**values, "space": space}
    for earlier in ([{}], [5], None, [{**values["earlier"][0], "mean_accuracy": 0.5}]):
        yield f"earlier {str(earlier)[:20]}", {**values, "earlier": earlier}


@pytest.mark.parametrize("values", [pytest.param(values, id=name) for name, values in broken_configs()])
def test_a_first_line_of_another_version_is_refused(values):
    with pytest.raises(DataError) as caught:
        StudyConfig.from_json(values)
    assert str(caught.value) == OTHER_VERSION


def broken_entries():
    entries = []
    run_trial(Study(config(), record=entries.append), 0.5)
    proposal, result = (entry[kind] for entry, kind in zip(entries, ("proposal", "result"), strict=True))
    yield "a trial without a proposal", entries[1:]
    yield "a result twice", [*entries, entries[1]]
    yield "no settings", [{"proposal": {"number": 0}}]
    yield "outside of the space", [{"proposal": {**proposal, "settings": {**proposal["settings"], "epochs": 500}}}]
    yield "settings of another kind", [{"proposal": {**proposal, "settings": ["epochs", 12]}}]
    yield "no trial", [entries[0], {"result": None}]
    yield "a trial with more", [entries[0], {"result": {**result, "mean_accuracy": 0.5}}]
    yield "a fold without epochs", [entries[0], {"result": {**result, "folds": [{**result["folds"][0], "epochs": []}]}}]
    yield "an epoch without accuracy", [
        entries[0], {"result": {**result, "folds": [{**result["folds"][0], "epochs": [{}]}]}},
    ]  # fmt: skip


@pytest.mark.parametrize("entries", [pytest.param(entries, id=name) for name, entries in broken_entries()])
def test_entries_of_another_version_are_refused_in_one_line(entries):
    with pytest.raises(DataError) as caught:
        Study(config(), entries)
    assert str(caught.value) == OTHER_VERSION


# --- the folder ---------------------------------------------------------------------------------


def create_study(folder, name, written=None):
    """A study in the folder, changed last at a time."""
    path = journal_of(folder, name)
    Journal(path, config().json()).close()
    if written is not None:
        os.utime(path, (written, written))
    return path


def test_a_study_is_read_while_another_process_writes_it(tmp_path):
    path = journal_of(tmp_path, "digits-1")
    assert path == tmp_path / "digits-1" / "journal.jsonl"
    with Journal(path, config().json()) as journal:
        study = Study(config(), record=journal.append)
        best = run_trial(study, 0.75)
        run_trial(study, 0.5, "pruned")
        proposal = study.ask()
        found, finished = read_study(tmp_path, "digits-1")
        assert (found.trials, found.best, found.under_way) == (study.trials, best, {2: proposal})
        assert not finished
        with path.open("ab") as file:
            file.write(b'{"result": {"num')  # at this very moment
        assert read_study(tmp_path, "digits-1")[0].trials == study.trials
    with Journal(path) as journal:
        journal.append({"finished": 0})
    found, finished = read_study(tmp_path, "digits-1")
    assert found.best == best
    assert finished


def test_a_study_that_cannot_be_read_is_one_line(tmp_path):
    with pytest.raises(DataError, match=r"^the journal .*digits-1/journal\.jsonl cannot be read: No such file"):
        read_study(tmp_path, "digits-1")
    Journal(journal_of(tmp_path, "digits-1"), {"seed": 0}).close()
    with pytest.raises(DataError, match=rf"^{OTHER_VERSION}$"):
        read_study(tmp_path, "digits-1")


def test_studies_are_sorted_by_last_change(tmp_path):
    assert studies_in(tmp_path / "missing") == []
    for name, written in (("b", 100), ("d", 300), ("a", 200), ("c", 300)):
        create_study(tmp_path, name, written)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("of something else")
    assert studies_in(tmp_path) == ["b", "a", "c", "d"]
    with Journal(journal_of(tmp_path, "b")) as journal:
        journal.append({"run": "abc"})
    assert studies_in(tmp_path) == ["a", "c", "d", "b"]
    read_study(tmp_path, "a")
    assert studies_in(tmp_path)[-1] == "b", "reading changes nothing"


def test_a_study_is_found_by_its_name_or_as_the_last_one(tmp_path):
    for name, written in (("digits-2", 100), ("digits-1", 200)):
        create_study(tmp_path, name, written)
    assert resolve_study(tmp_path, "last", "--resume") == "digits-1"
    assert resolve_study(tmp_path, "digits-2", "--resume") == "digits-2"


def test_an_unknown_study_is_refused_with_the_known_ones():
    with pytest.raises(SettingsError) as caught:
        resolve_study(Path("studies"), "last", "--resume")
    assert str(caught.value) == "there is no study in studies/, which --resume needs"
    for name, written in (("old", 100), ("digits-1", 200), ("new", 300)):
        create_study(Path("studies"), name, written)
    for choice, there in (("digit-1", "digits-1, new, old"), ("x", "new, digits-1, old")):
        with pytest.raises(SettingsError) as caught:
            resolve_study(Path("studies"), choice, "--warm-start")
        assert (
            str(caught.value) == f"--warm-start must be last or a study in studies/, got {choice}; there are: {there}"
        )


def test_a_study_claims_the_first_free_number(tmp_path):
    for name in ("digits-1", "digits-3", "flowers-1"):
        create_study(tmp_path, name)
    (tmp_path / "digits-2").write_text("of something else")
    assert [claimed_name(tmp_path, "digits") for _ in range(2)] == ["digits-4", "digits-5"]


def test_concurrent_studies_claim_different_names(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(lambda _: claimed_name(tmp_path / "studies", "digits"), range(8)))
    assert sorted(names) == [f"digits-{number}" for number in range(1, 9)]
    (tmp_path / "file").touch()
    assert claimed_name(tmp_path / "file", "digits") == "digits-1"  # what cannot be written says so later


@pytest.mark.parametrize(
    ("before", "now", "phrases"),
    [
        ({}, {}, []),
        ({"folds": 5, "seed": 0}, {"seed": 0, "folds": 5}, []),
        ({"time_budget": None}, {"time_budget": 9.0}, ["time_budget was None and is 9.0"]),
        (
            {"a": 1, "b": 2, "c": 3},
            {"d": 4, "c": 0, "a": 1},
            ["b was 2 and is gone", "c was 3 and is 0", "d is 4 and was not there"],
        ),
        ({"a": None}, {}, ["a was None and is gone"]),
        ({}, {"a": None}, ["a is None and was not there"]),
    ],
)
def test_differences_are_in_order(before, now, phrases):
    assert differences(before, now) == phrases


# --- the logits of the best trial ---------------------------------------------------------------


def logits(seed, images=40):
    return np.random.default_rng(seed).normal(size=(images, 3)).astype(np.float32)


def files(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_logits_of_all_complete_trials_stay_until_the_study_is_finished(tmp_path):
    for number in (0, 4, 2):
        save_logits(tmp_path, number, logits(number))
        found = load_logits(tmp_path, number)
        assert found.dtype == np.float32
        assert np.array_equal(found, logits(number))
    assert files(tmp_path) == ["logits-1.npy", "logits-3.npy", "logits-5.npy"], "numbers in names are from 1"
    save_logits(tmp_path, 2, logits(7))
    assert np.array_equal(load_logits(tmp_path, 2), logits(7))
    remove_logits(tmp_path)
    assert files(tmp_path) == []


def test_a_full_disk_keeps_other_logits(tmp_path):
    save_logits(tmp_path, 0, logits(0))
    with full_disk(1_000), pytest.raises(DataError) as caught:
        save_logits(tmp_path, 1, logits(1, images=4_000))
    assert str(caught.value) == f"{tmp_path}/logits-2.npy cannot be written: File too large"
    assert files(tmp_path) == ["logits-1.npy"]
    assert np.array_equal(load_logits(tmp_path, 0), logits(0))
    with pytest.raises(DataError, match=r"^missing/logits-1\.npy cannot be written: No such file or directory$"):
        save_logits(Path("missing"), 0, logits(0))


class Trap:
    def __reduce__(self):
        return os.mkdir, ("sprung",)


def test_broken_logits_are_refused_and_never_unpickled(tmp_path):
    save_logits(tmp_path, 0, logits(0))
    path = tmp_path / "logits-1.npy"
    whole = path.read_bytes()
    np.save(tmp_path / "trap.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    trap = (tmp_path / "trap.npy").read_bytes()
    for content in (b"", whole[:5], whole[:100], whole[:-1], b"hello", b"\x80\x04noise", trap):
        path.write_bytes(content)
        with pytest.raises(DataError) as caught:
            load_logits(tmp_path, 0)
        assert str(caught.value) == f"{path} cannot be read: it is broken"
    assert not Path("sprung").exists()
    with pytest.raises(DataError) as caught:
        load_logits(tmp_path, 1)
    assert str(caught.value) == f"{tmp_path}/logits-2.npy cannot be read: No such file or directory"

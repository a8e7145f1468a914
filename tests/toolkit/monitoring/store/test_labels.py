"""Labels: the last one counts, all are kept, and a follower reads each once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.errors import SettingsError, UnknownPrediction
from toolkit.monitoring.store.model_versions import ModelVersion
from toolkit.monitoring.store.predictions import LoggedPrediction, PredictionStore

CLASSES = ("cat", "dog")


def test_the_last_label_counts_and_all_are_kept(store, prediction):
    model = ModelVersion("1", CLASSES)
    store.write([prediction(8, model, 0.25), prediction(7, model, np.nan)])
    assert store.labels.insert({8: "cat"}, "user", 10.0) == 1
    assert store.labels.insert({8: "cat"}, "user", 11.0) == 0
    assert store.labels.insert({8: "dog", 7: "cat"}, "audit", 12.0) == 2
    assert store.window(model).labels.tolist() == [1, 0]
    found = store.labels.since(model, 0, 10)
    assert np.array_equal(found.confidence, [0.75, 0.75, np.nan], equal_nan=True)
    assert {name: column.tolist() for name, column in vars(found).items() if name != "confidence"} == {
        "number": [1, 2, 3], "ids": [8, 8, 7], "sequence": [1, 1, 2], "labels": [0, 1, 0], "before": [-1, 0, -1],
        "predicted": [1, 1, -1], "time": [10, 12, 12], "source": ["user", "audit", "audit"], "after": [2, 2, 2],
        "drawn_before": [False] * 3, "drawn": [False, True, True],
    }  # fmt: skip
    assert found.take(found.before == -1).ids.tolist() == [8, 7]
    assert store.labels.since(model, 1, 1).number.tolist() == [2]
    assert store.labels.since(model, 3, 10).n == 0


def test_labels_are_inserted_all_or_none(store, prediction):
    model = ModelVersion("1", CLASSES)
    store.write([prediction(number, model) for number in range(1, 1200)])
    with pytest.raises(UnknownPrediction, match="there is no prediction 00000000000004b0"):
        store.labels.insert(dict.fromkeys(range(1, 1201), "dog"), "user", 0.0)
    with pytest.raises(SettingsError, match="no class 'dgo'; the classes are dog, cat"):
        store.labels.insert({1: "dog", 2: "dgo"}, "user", 0.0)
    assert store.window(model).n_labels == 0
    assert store.labels.insert(dict.fromkeys(range(1, 1200), "dog"), "user", 0.0) == 1199


def test_an_accent_may_be_written_in_either_way(store, prediction):
    model = ModelVersion("1", ("e\u0301te\u0301", "hiver"))  # as a Mac wrote it, when that version was trained
    store.write([prediction(number, model) for number in (1, 2, 3)])
    assert store.labels.insert({1: "été", 2: "e\u0301te\u0301", 3: "hiver"}, "us\udce9r", 0.0) == 3
    found = store.labels.since(model, 0, 10)
    assert found.labels.tolist() == [0, 0, 1]
    assert set(found.source.tolist()) == {"us\\xe9r"}
    with pytest.raises(SettingsError, match=r"no class 'caf\\udce9'"):
        store.labels.insert({1: "caf\udce9"}, "user", 0.0)


def test_labels_of_two_versions_are_kept_apart(store, prediction):
    one, other = ModelVersion("1", CLASSES), ModelVersion("2", ("dog", "cat"))
    store.write([prediction(1, one), prediction(2, other)])
    store.labels.insert({2: "dog", 1: "dog"}, "user", 0.0)
    assert store.labels.since(one, 0, 10).labels.tolist() == [1]
    assert store.labels.since(other, 0, 10).labels.tolist() == [0]
    assert store.labels.since(ModelVersion("3", CLASSES), 0, 10).n == 0
    assert store.labels.last() == 2


@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("plr"), st.integers(0, 30), st.integers(1, 5)), max_size=40))
def test_rows_and_labels_that_are_read_bit_by_bit_add_up_to_the_store(tmp_path_factory, steps):
    """As a follower reads: rows up to a label, then the labels above it."""
    store = PredictionStore(str(tmp_path_factory.mktemp("s") / "m.db"))
    model, made = ModelVersion("1", CLASSES), 0
    seen, last, reached = {}, 0, 0

    def read(limit):
        nonlocal last, reached
        new = store.labels.since(model, last, limit)
        for sequence, label, before in zip(new.sequence, new.labels, new.before, strict=True):
            if sequence <= reached:
                assert seen[sequence] == before
                seen[sequence] = label
        last = int(new.number[-1]) if new.n else last
        rows = store.rows_since(model, reached, limit, last)
        seen.update(zip(rows.sequence, rows.labels, strict=True))
        reached = int(rows.sequence[-1]) if rows.n else reached

    for step, which, much in steps:
        if step == "p":
            store.write([LoggedPrediction(made + i, 0.0, model, np.array([1, 0], np.float16)) for i in range(much)])
            made += much
        elif step == "l" and which < made:
            store.labels.insert({which: CLASSES[much % 2]}, "user", 0.0)
        else:
            read(much)
    for _ in range(made + 50):
        read(5)
    whole = store.window(model)
    assert list(seen.items()) == list(zip(whole.sequence.tolist(), whole.labels.tolist(), strict=True))
    store.close()


def test_labels_of_drawn_predictions_are_a_sample(store, prediction):
    model = ModelVersion("1", CLASSES)
    store.write([prediction(number, model) for number in range(1, 9)])
    store.labels.insert({1: "cat", 2: "dog"}, "user", 1.0)
    store.labels.insert_drawn([2, 3, 4, 5], 2.0)
    store.labels.insert_drawn([5, 6], 3.0)
    store.labels.insert_drawn([], 3.0)
    store.labels.insert({3: "cat", 7: "dog"}, "unspecified", 4.0)
    store.labels.insert({4: "dog", 8: "dog"}, "ada", 5.0)
    store.labels.insert({5: "dog"}, "complaint", 6.0)
    store.labels.insert({3: "dog"}, "bob", 7.0)  # a second thought
    found = store.labels.since(model, 0, 20)
    assert list(zip(found.ids.tolist(), found.source.tolist(), strict=True)) == [
        (1, "user"), (2, "user"), (2, "audit"), (3, "audit"), (7, "unspecified"), (4, "audit: ada"), (8, "ada"),
        (3, "audit: bob"),
    ]  # fmt: skip
    assert found.drawn.tolist() == [False, False, True, True, False, True, False, True]
    assert found.drawn_before.tolist() == [False] * 7 + [True]
    assert found.before.tolist() == [-1, -1, 1, -1, -1, -1, -1, 0]
    rows = store.rows_since(model, 0, 20)
    assert rows.drawn.tolist() == [False, True, True, True, False, False, False, False]
    assert store.rows_since(model, 0, 20, up_to_label=3).drawn.tolist() == [False, True] + [False] * 6
    assert store.rows_since(model, 3, 2).drawn.tolist() == [True, False]

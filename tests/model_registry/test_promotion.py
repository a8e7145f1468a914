"""The promotion gate on real bundles, also when another process promotes meanwhile."""

import shutil

import pytest

from model_registry import ModelRegistry
from toolkit.bundle.files import PROGRAM
from toolkit.errors import DataError, PromotionRefused, RegistryError, SettingsError
from toolkit.registry import promotion_gate
from toolkit.registry.stages import Stages


def test_a_significantly_worse_version_is_refused(any_registered):
    registered = any_registered
    registered.promote(0.8)
    registered.register(0.9, lean=13)  # 42 of 300 images are called red and are not
    before = registered.history()
    message = r"v2 may not replace v1: accuracy 0.86 \[.*\] against 1 \[.*it is signif"
    with pytest.raises(PromotionRefused, match=message):
        registered.transition_model_stage(2, "Production", reason="tuned")
    assert registered.history().equals(before)
    result = registered.check_promotion(2)
    assert (result.paired.whole.lost, result.paired.whole.gained) == (42, 0)
    assert min(result.latency_ms) > 0

    with pytest.raises(SettingsError, match="a forced promotion needs a reason"):
        registered.transition_model_stage(2, "Production", force=True, reason=" ")
    assert registered.transition_model_stage(2, "Production", force=True, reason="v1 is gone").stage == "Production"
    last = registered.get(2).transitions[-1]
    assert (last.reason, last.gate) == ("v1 is gone", f"forced: {result}"[: len(last.gate)])
    assert registered.check_promotion(2) is None  # it is there
    assert registered.rollback().version == 1  # without a gate


def test_a_first_and_a_better_version_pass(registered):
    registered.register(0.8, lean=13)
    assert registered.check_promotion(1) is None
    registered.transition_model_stage(1, "Production")
    registered.promote(0.9)
    gates = registered.history()["gate"]
    assert gates[1] == "nothing to compare with"
    passed = "passed: accuracy 1 [0.987, 1] against 0.86 [0.816, 0.895] of v1 on the same 300 images, 4"
    assert gates[3].startswith(passed)


def test_a_broken_champion_can_be_replaced(registered, caplog):
    run = registered.log(0.8)
    registered.register_best_model(registered.name)
    registered.transition_model_stage(1, "Production")
    registered.register(0.9, lean=13)
    registered.alter(run, PROGRAM)
    moved = registered.transition_model_stage(2, "Production")
    assert moved.transitions[-1].gate == "v1 could not be compared with"
    assert f"it is compared with nothing, because v1 of {registered.name} cannot be used" in caplog.text


def test_promotion_on_the_users_images(registered, colour_folder):
    """Version 2 calls each image red, which is right for these; on all colours it is not."""
    registered.promote(0.8)
    registered.register(0.9, lean=40)
    assert not registered.check_promotion(2, data=colour_folder).passed
    for colour in ("blue", "green"):
        shutil.rmtree(colour_folder / colour)
    result = registered.check_promotion(2, data=str(colour_folder))
    assert result.passed
    assert result.paired.by_class.keys() == {"red"}
    assert result.paired.whole.images == 40
    table = registered.compare_models([1, 2], data=colour_folder)
    assert table["images"].tolist() == [40, 40]
    assert table["accuracy"].tolist() == [1.0, 1.0]
    with pytest.raises(DataError, match=r"nowhere"):
        registered.transition_model_stage(2, "Production", data="nowhere")
    assert registered.transition_model_stage(2, "Production", data=colour_folder).stage == "Production"


def test_the_gate_compares_with_the_champion_at_the_move(registered, monkeypatch):
    """Another process promotes version 3 while version 2 is compared with version 1."""
    for accuracy, lean in ((0.7, 13), (0.8, 13), (0.9, 0)):
        registered.register(accuracy, lean=lean)
    registered.transition_model_stage(1, "Production")
    other, calls, check_promotion = ModelRegistry(registered.uri, registered.name), [], promotion_gate.check_promotion

    def overtaken(challenger, champion):
        calls.append((challenger.version.version, champion.version.version))
        if len(calls) == 1:
            other.transition_model_stage(3, "Production")
        return check_promotion(challenger, champion)

    monkeypatch.setattr(promotion_gate, "check_promotion", overtaken)
    with pytest.raises(PromotionRefused, match="v2 may not replace v3"):
        registered.transition_model_stage(2, "Production")
    assert calls == [(2, 1), (3, 1), (2, 3)]
    assert registered.stages() == {3: "Production", 2: "None", 1: "Archived"}


def test_a_concurrent_promotion_is_an_error(registered, monkeypatch):
    for accuracy in (0.8, 0.9):
        registered.register(accuracy)
    other, move = ModelRegistry(registered.uri, registered.name), Stages.move

    def overtaken(stages, version, *words, **more):
        move(stages, version, *words, **more)
        if version.version == 1:
            other.transition_model_stage(2, "Production")

    monkeypatch.setattr(Stages, "move", overtaken)
    with pytest.raises(RegistryError, match=r"another process .* v1 was put into Production and is in Archived now"):
        registered.transition_model_stage(1, "Production")
    assert registered.stages() == {2: "Production", 1: "Archived"}

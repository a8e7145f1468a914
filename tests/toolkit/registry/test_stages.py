"""Moves between stages on a real store, also when the process dies between any two writes."""

import itertools
import random
from datetime import UTC, datetime, timedelta

import pytest

from toolkit.registry.stages import Stages, production_line, resolve_stage, rollback_candidates
from toolkit.registry.versions import ALIASES, STAGES, Transition, Version

NUMBERS = itertools.count()
NINE = datetime(2026, 5, 1, 9, tzinfo=UTC)
WRITES = (
    "set_model_version_tag",
    "set_registered_model_alias",
    "delete_registered_model_alias",
    "transition_model_version_stage",
)


@pytest.fixture
def client(database):
    return database


class Model:
    """A model of versions without files."""

    def __init__(self, client, name, **more):
        self.name, self.stages = name, Stages(client, name, **more)

    def move(self, number, stage, why="", *, rollback=False):
        version = next(each for each in self.stages.versions() if each.version == number)
        self.stages.move(version, stage, why, rollback=rollback)

    def read(self):
        return {version.version: version.stage for version in self.stages.versions()}

    def log(self):
        entries = [entry for version in self.stages.versions() for entry in version.transitions]
        return [(e.version, e.source, e.target, e.reason) for e in sorted(entries, key=lambda entry: entry.time)]

    def assert_whole(self):
        """Aliases, tags, MLflow's stages and the history say the same, and no stage holds two."""
        versions = self.stages.versions()
        for version in versions:
            assert {version.stage} == {version.written_stage, version.mlflow_stage}
            assert version.transitions[-1].target == version.stage if version.transitions else version.stage == "None"
            ours = set(version.aliases) & set(ALIASES.values())
            assert ours == ({ALIASES[version.stage]} if version.stage in ALIASES else set())
        for stage in ALIASES:
            assert sum(version.stage == stage for version in versions) <= 1
        times = [entry.time for version in versions for entry in version.transitions]
        assert len(times) == len(set(times))


@pytest.fixture
def new_model(client):
    def create(versions=4):
        name = f"model {next(NUMBERS)}"
        client.create_registered_model(name)
        for _ in range(versions):
            client.create_model_version(name, "/nowhere")
        return Model(client, name)

    return create


class DyingClient:
    """A client that dies instead of making its n-th write."""

    def __init__(self, client, writes=-1):
        self._client, self.left = client, writes

    def __getattr__(self, name):
        method = getattr(self._client, name)
        if name not in WRITES:
            return method

        def write(*words, **more):
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            return method(*words, **more)

        return write


class StagelessClient(DyingClient):
    """A client as it will be when MLflow has no stages any more."""

    def __getattr__(self, name):
        if name == "transition_model_version_stage":
            raise AttributeError(name)
        return super().__getattr__(name)


def test_a_promotion_moves_alias_stage_tag_and_history_together(new_model):
    model = new_model()
    model.move(1, "Staging", "tested")
    model.move(1, "Production", "passed")
    model.move(2, "Production", "better")
    assert model.read() == {1: "Archived", 2: "Production", 3: "None", 4: "None"}
    assert model.log() == [
        (1, "None", "Staging", "tested"),
        (1, "Staging", "Production", "passed"),
        (2, "None", "Production", "better"),
        (1, "Production", "Archived", "replaced by v2"),
    ]
    model.assert_whole()


def test_other_aliases_stay(client, new_model):
    model = new_model()
    client.set_registered_model_alias(model.name, "champion", "1")
    model.move(1, "Production")
    model.move(1, "None")
    assert next(version.aliases for version in model.stages.versions() if version.version == 1) == ("champion",)


@pytest.mark.parametrize("seed", range(2))
def test_any_moves_leave_a_consistent_registry(new_model, seed):
    model, dice = new_model(), random.Random(seed)
    expected, promotions = dict.fromkeys(range(1, 5), "None"), 0
    for _ in range(12):
        number, stage = dice.randint(1, 4), dice.choice(STAGES)
        if expected[number] == stage:
            continue
        before = len(model.log())
        displaced = [each for each, held in expected.items() if stage in ALIASES and held == stage]
        model.move(number, stage, "walk")
        expected.update(dict.fromkeys(displaced, "Archived"))
        expected[number] = stage
        promotions += stage == "Production"
        assert model.read() == expected
        assert len(model.log()) == before + 1 + len(displaced)
    model.assert_whole()
    assert sum(target == "Production" for _, _, target, _ in model.log()) == promotions


@pytest.mark.parametrize(
    ("number", "target"), [(3, "Production"), (2, "Production"), (1, "Staging"), (1, "Archived"), (2, "None")]
)
def test_a_kill_at_any_write_is_repaired_by_the_next_move(client, new_model, number, target):
    finished = False
    for writes in itertools.count():
        model = new_model(versions=3)
        for version, alias in (("1", "production"), ("2", "staging")):
            client.set_registered_model_alias(model.name, alias, version)
        model.stages.repair()
        before = model.read()
        dying = Model(DyingClient(client, writes), model.name)
        try:
            dying.move(number, target, "kill me")
            finished = True
        except KeyboardInterrupt:
            pass
        if target == "Production":
            assert list(model.read().values()).count("Production") == 1
        model.stages.repair()
        model.assert_whole()
        moved = model.read()[number]
        assert moved in (target, before[number])
        if moved == before[number]:  # it never took effect, and a rollback will not count it
            assert production_line(e for v in model.stages.versions() for e in v.transitions) == [1]
        assert model.stages.repair() == []
        if finished:
            assert writes >= 4
            break


def test_two_production_versions_of_mlflow_are_repaired(client, new_model):
    model = new_model()
    model.move(1, "Production")
    model.stages._show(2, "Staging")
    client.set_model_version_tag(model.name, "3", "stage", "Production")
    assert sorted(model.stages.repair()) == [
        "v2 was left half-way and is in None now",
        "v3 was left half-way and is in Archived now",
    ]
    model.assert_whole()
    assert model.read() == {1: "Production", 2: "None", 3: "Archived", 4: "None"}


def test_an_alias_moved_by_another_tool_is_recorded(client, new_model):
    model = new_model()
    model.move(1, "Production")
    client.set_registered_model_alias(model.name, "production", "2")
    model.stages.repair()
    model.assert_whole()
    assert model.log()[1:] == [
        (2, "None", "Production", "repaired: the alias 'production' was set by another tool"),
        (1, "Production", "Archived", "replaced by v2"),
    ]
    assert [version.version for version in rollback_candidates(model.stages.versions())] == [1]


def test_aliases_and_tags_work_without_mlflow_stages(client, new_model):
    model = new_model()
    stageless = Model(StagelessClient(client), model.name)
    stageless.move(1, "Production")
    stageless.move(2, "Production")
    assert model.read() == {1: "Archived", 2: "Production", 3: "None", 4: "None"}
    assert stageless.stages.repair() == []


def test_the_history_keeps_its_order_with_a_bad_clock(client, new_model):
    hours = iter([NINE, NINE, NINE - timedelta(hours=1), NINE - timedelta(hours=1), NINE, NINE])
    model = Model(client, new_model().name, clock=lambda: next(hours))
    for number in (1, 2, 3):
        model.move(number, "Production")
    assert [number for number, _, target, _ in model.log() if target == "Production"] == [1, 2, 3]
    model.assert_whole()


def line(*steps):
    return production_line(
        Transition(version, NINE + timedelta(seconds=second), source, target, rollback=rollback)
        for second, (version, source, target, rollback) in enumerate(steps)
    )


def up(version, *, rollback=False):
    return version, "Archived", "Production", rollback


def down(version):
    return version, "Production", "Archived", False


def test_each_rollback_goes_further_back():
    assert line(up(1), up(2), down(1), up(3), down(2)) == [1, 2, 3]
    assert line(up(1), up(2), up(3), up(2, rollback=True), down(3)) == [1, 2]
    assert line(up(1), up(2), up(3), up(2, rollback=True), up(1, rollback=True)) == [1]
    assert line(up(1), up(2), up(3), up(1, rollback=True)) == [1]  # 2 was broken and passed over
    assert line(up(1), up(2), up(1)) == [1, 2, 1]  # promoted again, so 2 was the one before


def test_a_rollback_skips_versions_archived_in_production():
    assert line(up(1), up(2), down(1), down(2)) == [1]
    assert line(up(1), up(2), down(2), up(3)) == [1, 3]


def test_resolve_stage_ignores_mlflows_stage():
    version = Version("cats", 1, "Archived", "", "", "", NINE, tags={"stage": "Production"}, mlflow_stage="Production")
    stage, entry = resolve_stage(version, {"Production": 2})
    assert (stage, entry and entry.reason) == ("Archived", "replaced by v2")
    stage, entry = resolve_stage(version, {})
    assert (stage, entry and entry.reason) == ("Archived", "repaired: the alias 'production' was taken away")

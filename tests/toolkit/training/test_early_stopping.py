"""Early stopping: the rule worked out by hand, and its state as JSON."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.training.early_stopping import EarlyStopping
from toolkit.training.hyperparameters import Hyperparameters


def test_patience_and_min_delta_by_hand():
    """``patience`` 2 and ``min_delta`` 0.1."""
    stopping = EarlyStopping(Hyperparameters(patience=2, min_delta=0.1))
    story = [
        ((0.50, 1.00), True, False),  # the first is always an improvement
        ((0.55, 0.95), True, False),  # best, but too small an improvement: waited 1
        ((0.62, 1.20), True, False),  # 0.12 above the 0.50 that counted: waited 0
        ((0.60, 0.85), False, False),  # the loss fell by 0.15 below 1.00: waited 0
        ((0.70, 0.80), True, False),  # 0.08 and 0.05: waited 1
        ((0.70, 0.78), True, True),  # as accurate with a lower loss is better, but again too little: waited 2
    ]
    for epoch, best, stop in story:
        assert (stopping.is_best(*epoch), stopping.should_stop(*epoch)) == (best, stop), epoch


@pytest.mark.parametrize("min_delta", [0.0, 1e-3])
def test_a_plateau_is_no_improvement(min_delta):
    stopping = EarlyStopping(Hyperparameters(patience=3, min_delta=min_delta))
    assert [stopping.should_stop(0.9, 0.3) for _ in range(4)] == [False, False, False, True]


shares = st.sampled_from([0.0, 0.25, 0.26, 0.5, 0.75, 1.0])


@given(st.lists(st.tuples(shares, shares), min_size=1, max_size=12), st.data())
def test_the_state_survives_json_at_any_epoch(story, data):
    hparams = Hyperparameters(patience=3, min_delta=0.05)
    cut = data.draw(st.integers(0, len(story)))
    whole, before, after = (EarlyStopping(hparams) for _ in range(3))
    expected = [(whole.is_best(*epoch), whole.should_stop(*epoch)) for epoch in story]
    for epoch in story[:cut]:
        before.is_best(*epoch)
        before.should_stop(*epoch)
    after.restore(json.loads(json.dumps(before.state())))
    assert [(after.is_best(*epoch), after.should_stop(*epoch)) for epoch in story[cut:]] == expected[cut:]

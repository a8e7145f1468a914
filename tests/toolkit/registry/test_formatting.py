"""What people read: descriptions and tables."""

import math

import numpy as np
import pandas as pd

from support.colours import colour_card
from toolkit.bundle.baseline import Baseline
from toolkit.bundle.files import Measurement
from toolkit.registry.formatting import INTERVALS, comparison_table, version_description


def test_a_description_has_sample_sizes_and_shortens_lists():
    classes = tuple(f"class {number}" for number in range(12))
    card = colour_card(classes=classes).model_copy(
        update={
            "metrics": {
                "accuracy": Measurement(value=0.98765, images=300),
                "mean_cv_accuracy": Measurement(value=0.9, images=1700),
            }
        }
    )
    baseline = Baseline(classes, np.eye(12)[:4], np.array([0, 1, 2, 0]))
    assert version_description(card, baseline, "best of three", "abc").splitlines() == [
        "- network: simple_cnn at 16 px",
        "- settings: learning_rate 0.001",
        "- classes: 12 (" + ", ".join(classes[:10]) + ", ...)",
        "- data: colours, fingerprint ffffffffffffffff",
        "- held out: 4 images, accuracy 0.75",
        "- measured: accuracy 0.9877 (300 images); mean_cv_accuracy 0.9 (1700 images)",
        "- chosen by: best of three",
        "- run: abc",
        "- code: test",
    ]


def test_a_comparison_leaves_out_missing_metrics():
    table = pd.DataFrame(
        {
            "stage": ["Production", "None"],
            "accuracy": [0.9, 0.8],
            "accuracy_low": [0.85, 0.75],
            "accuracy_high": [0.95, 0.85],
            "lost": pd.array([None, 3], dtype="Int64"),
            **{name + bound: [math.nan] * 2 for name in INTERVALS[1:] for bound in ("", "_low", "_high")},
            "size_mb": [44.781, 0.06],
            "created": pd.to_datetime(["2026-05-01 09:30", "2026-05-02 10:00"], utc=True),
        },
        index=pd.Index([3, 4], name="version"),
    )
    assert comparison_table(table).splitlines() == [
        "          v3                v4",
        "stage     Production        None",
        "accuracy  0.9 [0.85, 0.95]  0.8 [0.75, 0.85]",
        "lost                        3",
        "size_mb   44.78             0.06",
        "created   2026-05-01 09:30  2026-05-02 10:00",
    ]

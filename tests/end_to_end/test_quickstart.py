"""The notebook runs from its first cell to its last, and ends with an alert."""

import json
import re
import subprocess
import sys

from support import MAX_WAIT_S, ROOT

NOTEBOOK = json.loads((ROOT / "examples" / "quickstart.ipynb").read_text())
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_every_cell_runs(tmp_path):
    examples = tmp_path / "examples"
    examples.mkdir()
    for name in ("toolkit", "train_cnn.py", "model_registry.py", "monitoring.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    checks = [
        'assert outcome.metrics["held_out_accuracy"] > 0.8',
        'assert any(alert.level == "immediate" for alert in monitor.alerts())',
        "assert monitor.detect_drift().drifted",
    ]
    result = subprocess.run(
        [sys.executable, "-c", "\n".join(CODE + checks)],
        check=False,
        cwd=examples,
        capture_output=True,
        text=True,
        timeout=MAX_WAIT_S,
    )
    assert result.returncode == 0, result.stderr
    assert re.search(r"ACCURACY \d+ -> \d+ % since ", result.stdout)


def test_it_is_a_notebook_that_holds_no_output():
    """Outputs would be those of one machine and one day."""
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])
    assert [cell["outputs"] for cell in NOTEBOOK["cells"] if cell.get("outputs")] == []

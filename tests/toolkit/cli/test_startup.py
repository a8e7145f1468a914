"""Ctrl-C while a script is still importing: one line and status 130; and an import alone changes nothing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT
from toolkit.cli.startup import begin_imports, end_imports

SCRIPTS = ("train_cnn.py", "hyperopt_tuning.py", "model_registry.py", "monitoring.py", "serve_model.py")


@pytest.mark.parametrize("moment", ["dataclasses", "pydantic.errors"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_ctrl_c_during_the_imports_is_one_line_and_status_130(script, moment):
    """Python itself prints which import is done, on standard error, where the signal is sent at that moment."""
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", str(ROOT / script), "--help"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.split("|")[-1].strip() == moment:
                break
        process.send_signal(signal.SIGINT)
        said = [line for line in process.stderr if not line.startswith("import time:")]
    assert process.returncode == 130
    assert said == [f"{script}: interrupted\n"]


def test_only_the_imports_end_like_that():
    try:
        begin_imports()
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        end_imports()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_signal_that_is_ignored_stays_so():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        begin_imports()
        end_imports()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_nothing_that_takes_time_is_imported_for_it():
    code = f"import sys; sys.path.insert(0, {str(Path(ROOT))!r}); import toolkit.cli.startup; print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True)
    assert not {"pathlib", "typing", "re", "argparse", "pydantic"} & set(ended.stdout.split())

"""Ctrl-C while a script is still importing: one line and status 130; and an import alone changes nothing."""

import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT
from support.scripts import run_script
from toolkit.cli.startup import begin_imports, end_imports

SCRIPTS = ("train_cnn.py", "hyperopt_tuning.py", "model_registry.py", "monitoring.py", "serve_model.py")


# What Python imports before a script: the signal comes when the script imports the module.
INTERRUPTING = """
import os, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "{moment}":
            os.kill(os.getpid(), 2)

sys.meta_path.insert(0, Interrupting())
"""


@pytest.mark.parametrize("moment", ["dataclasses", "pydantic.errors"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_ctrl_c_during_the_imports_is_one_line_and_status_130(script, moment, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTING.format(moment=moment))
    path = os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])
    ended = run_script(script, "--help", PYTHONPATH=path)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", f"{script}: interrupted\n")


def test_only_the_imports_end_like_that():
    try:
        begin_imports()
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        end_imports()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_garbage_is_collected_again_after_the_imports():
    try:
        begin_imports()
        assert not gc.isenabled()
        end_imports()
        assert gc.isenabled()
    finally:
        gc.unfreeze()


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

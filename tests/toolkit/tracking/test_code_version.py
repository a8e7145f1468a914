"""The version of the code."""

import re
import shutil
import subprocess
import sys

from support import ROOT
from toolkit.tracking.code_version import code_version

CODE = """
from toolkit.tracking.code_version import code_version
print(code_version())
open('toolkit/tracking/code_version.py', 'a').write('# changed')
print(code_version())
"""


def test_the_code_version_is_gits(tmp_path):
    """In a repository of its own: a commit, and -dirty once a file was changed."""
    names = ("__init__", "cli/__init__", "cli/script_commands", "tracking/__init__", "tracking/code_version")
    for name in names:
        target = tmp_path / "toolkit" / f"{name}.py"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "toolkit" / f"{name}.py", target)

    def run(*words):
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()

    def git(*words):
        return run(shutil.which("git"), "-c", "user.name=a", "-c", "user.email=a@example.org", *words)

    git("init", "--quiet")
    git("add", "toolkit")
    git("commit", "--quiet", "--message", "first")
    git("tag", "--annotate", "v9", "--message", "a tag is no version")
    (commit,) = git("rev-parse", "HEAD")
    clean, dirty = run(sys.executable, "-c", CODE)
    assert re.fullmatch(r"[0-9a-f]{12,}", clean)
    assert commit.startswith(clean)
    assert dirty == f"{clean}-dirty"


def test_without_git_the_code_version_is_unknown(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert code_version() == "unknown"

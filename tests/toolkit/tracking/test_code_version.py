"""The version of the code."""

import re
import shutil
import subprocess
import sys

from support import ROOT
from toolkit.tracking.code_version import code_version


def test_the_code_version_is_gits(tmp_path):
    """In a repository of its own: a commit, and -dirty once a file was changed."""
    for name in (
        "__init__.py",
        "cli/__init__.py",
        "cli/commands.py",
        "tracking/__init__.py",
        "tracking/code_version.py",
    ):
        target = tmp_path / "home" / "toolkit" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "toolkit" / name, target)

    def git(*words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        answer = subprocess.run(
            ["git", *identity, *words], check=True, capture_output=True, text=True, cwd=tmp_path / "home"
        )
        return answer.stdout.strip()

    def version():
        lines = (
            f"import sys; sys.path.insert(0, {str(tmp_path / 'home')!r})",
            "from toolkit.tracking.code_version import code_version",
            "print(code_version())",
            "open('toolkit/tracking/code_version.py', 'a').write('# changed')",
            "print(code_version())",
        )
        answer = subprocess.run(
            [sys.executable, "-c", "\n".join(lines)], check=True, capture_output=True, text=True, cwd=tmp_path / "home"
        )
        return answer.stdout

    git("init", "--quiet")
    git("add", "toolkit")
    git("commit", "--quiet", "--message", "first")
    git("tag", "--annotate", "v9", "--message", "a tag is no version")
    commit = git("rev-parse", "HEAD")
    clean, dirty = version().split()
    assert re.fullmatch(r"[0-9a-f]{12,}", clean)
    assert commit.startswith(clean)
    assert dirty == f"{clean}-dirty"


def test_without_git_the_code_version_is_unknown(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert code_version() == "unknown"

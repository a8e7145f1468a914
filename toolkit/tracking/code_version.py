"""The version of the code, for runs and bundles."""

import subprocess
from importlib.metadata import version

from toolkit.cli.script_commands import DISTRIBUTION, ROOT


def code_version() -> str:
    """The git commit of the scripts, ``-dirty`` with changed files, or ``unknown``; the version if installed."""
    if DISTRIBUTION:
        return version(DISTRIBUTION)
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--match="]
    try:
        answer = subprocess.run(words, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer.stdout.strip() or "unknown"

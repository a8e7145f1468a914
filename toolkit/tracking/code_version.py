"""The version of the code, for what it makes: runs, bundles."""

import subprocess
from importlib.metadata import version

from toolkit.cli.commands import DISTRIBUTION, ROOT


def code_version() -> str:
    """The git commit of the scripts, ``-dirty`` when files were changed, or ``unknown``; installed, the version."""
    if DISTRIBUTION:
        return version(DISTRIBUTION)
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--match="]
    try:
        answer = subprocess.run(words, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer.stdout.strip() or "unknown"

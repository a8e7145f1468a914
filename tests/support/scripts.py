"""The scripts as processes of their own."""

import os
import re
import subprocess
import sys

from support import MAX_WAIT_S, ROOT


def run_script(*words, timeout=MAX_WAIT_S, **variables):
    """Run one of the scripts as a user would, in the test's own folder."""
    script, *arguments = words
    return subprocess.run(
        [sys.executable, str(ROOT / script), *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **variables},
    )


def error_line(result):
    """The one line of a script that refused its input: no traceback, status 2."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if re.match(r"\w+\.py: error: ", line)]
    assert len(lines) == 1, result.stderr
    return lines[0]

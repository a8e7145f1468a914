"""What tests share; the package itself needs nothing of the project."""

from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
MAX_WAIT_S = 600.0  # what a test waits for comes sooner on the busiest machine, or never

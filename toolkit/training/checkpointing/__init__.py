"""Runs that survive an interruption: checkpoint (a file) < manager (when it is saved)."""

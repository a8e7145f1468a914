"""Processes, locks, SQLite files and readings of the machine: file_locks < sqlite_schema; metrics; subprocesses."""

"""The package of monitoring.py: base < stats < windows, store < alerting < pipeline; windows < plots, report."""

"""The workshop of monitoring.py: store, writer, windows, statistics, drift, alerts and plots."""

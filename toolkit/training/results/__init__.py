"""What a run logs of a training: evaluation, plots < run_logging."""

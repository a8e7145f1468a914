"""Results of a training that its run logs: evaluation, plots < run_logging."""

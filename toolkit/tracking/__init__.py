"""MLflow: errors < connection; code_version, connection < run."""

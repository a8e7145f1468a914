"""Search for hyperparameters: space < trial, pruning < study < journal, study_storage, worker_pool < plots, progress <
mlflow_logger < search."""

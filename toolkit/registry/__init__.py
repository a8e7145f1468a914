"""Versions of a registered model: versions < stages, run_selection, bundles < formatting < registration;
mcnemar < metrics, latency < evaluation_data < comparison < promotion_gate, plots."""

"""Versions of a registered model: versions < stages, run_selection, bundles < formatting < external_versions <
registration; mcnemar < metrics, latency < evaluation_data < comparison < promotion_gate, plots."""

"""Statistics that several scripts need: classification_metrics, calibration, detection_power, intervals."""

"""What every other part speaks of: ids, image_names, timestamps, thresholds, predictions, validation."""

"""Data and checks of all other parts: ids, image_names, timestamps, formatting, thresholds, predictions, validation."""

"""Counts of predictions and what follows from them: summary < reference, label_bias < rolling, drift, metrics."""

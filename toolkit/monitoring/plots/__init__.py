"""Plots of a model version: timeline < style < over_time, snapshot < metric_plot."""

"""Colours, axes and fonts of all plots: fonts < style."""

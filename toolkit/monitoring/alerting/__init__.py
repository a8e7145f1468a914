"""Alerts on windows and detectors: messages, state < findings < evaluator < checkpoints; notifiers < webhook; manager.

``manager`` is above all but ``webhook``.
"""

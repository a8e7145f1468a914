"""The workshop of serve_model.py: formats, limits, keys, problems, engine, desk, live model, figures and pages."""

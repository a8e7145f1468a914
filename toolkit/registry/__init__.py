"""The workshop of model_registry: what a version is, how it moves, how versions are chosen and compared."""

"""The workshop of hyperopt_tuning: the search space, the study and its figures."""

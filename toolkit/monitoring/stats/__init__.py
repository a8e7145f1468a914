"""Numbers in, numbers out: distributions < hypothesis_tests < label_sampling; performance < performance_estimation;
splitmix < label_sampling, e_detectors < detector_set.
"""

"""Numbers in, numbers out: distributions < hypothesis_tests < performance, label_sampling; splitmix < e_detectors <
detector_set; performance_estimation.
"""

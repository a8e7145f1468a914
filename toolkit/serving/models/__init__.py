"""The model: openvino_cache < engines < isolated_load, smoke_test; source < local_cache < manager < shadow."""

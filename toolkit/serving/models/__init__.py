"""The model: openvino_cache < engines < isolated_load, smoke_test; source < advance, local_cache < manager < shadow."""

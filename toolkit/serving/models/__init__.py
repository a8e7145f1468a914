"""The model that answers: openvino_cache < engines < isolated_load, smoke_test < manager < local_cache, shadow."""

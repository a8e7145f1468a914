"""Model that answers: openvino_cache < engines < smoke_test < manager < local_cache, shadow; engines < isolated_load."""

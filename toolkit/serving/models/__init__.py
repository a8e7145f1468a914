"""The model that is served.

Order: openvino_cache < engines < isolated_load, smoke_test; source < preparation, local_cache < manager < shadow.
"""

"""Images in memory, from a folder or a name, each with its use.

arrays < cifar, idx < builtin < catalogue < cache_files < cache_eviction, decode < cache < near_duplicates < groups <
splits < dataset, report.
"""

"""Images in memory, from a folder or a name, each with its use.

arrays < cifar, idx < builtin < catalogue < decode < cache_files < cache < near_duplicates < groups < splits <
dataset, report.
"""

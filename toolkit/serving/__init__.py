"""HTTP service of registered models.

Order: problems, schemas, cached_call, workers < models < inference < metrics < http; metrics < service; http and
service < routes. ``dashboard`` holds the files of the page.
"""

"""The mechanisms of the five scripts: a package for each, and shared modules.

Shared modules: errors, redaction < cli < system, images, statistics < tracking, plotting < bundle. A package imports
them, and no other package.
"""

"""The bundle of a model version: archive_check, baseline < files (card, digest) < program."""

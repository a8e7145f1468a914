"""The scripts as command lines: import_interrupt, commands, safe_names < settings, terminal < data_settings."""

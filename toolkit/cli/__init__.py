"""The scripts as command lines: import_interrupt, script_commands, safe_names < settings, terminal < data_settings."""

"""The scripts as command lines: startup, script_commands, safe_names < settings, terminal < data_settings."""

"""SQL and the queue in front of it: schema < database < model_versions < labels, alerts < row_codec < predictions < rest."""

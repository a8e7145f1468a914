"""SQL, and a queue for it: schema < database < model_versions < labels, alerts < row_codec < predictions < the rest."""

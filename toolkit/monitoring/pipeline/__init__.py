"""Store, windows and alerting put together: stream_state < worker, replay_source < replay."""

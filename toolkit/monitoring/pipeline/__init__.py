"""Store, windows and alerting put together: stream_state < worker; model_selection; both < prediction_logger;
replay_source < replay.
"""

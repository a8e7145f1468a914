"""Training of one network: data/, gpu < device < networks, batches, features < train_step < loop < checkpointing/,
results/.
"""

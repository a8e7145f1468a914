"""Training of one network: data/ < networks, batches, features < train_step < loop < checkpointing/, results/."""

"""The workshop of train_cnn: data sets, augmentation, networks, the training loop, evaluation and figures."""

"""Routes of other protocols than the service's own: binary_tensors < inference_protocols."""

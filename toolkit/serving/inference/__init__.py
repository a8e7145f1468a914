"""Images to predictions: result < batcher (decode, batch, run); admission limits how much may wait."""

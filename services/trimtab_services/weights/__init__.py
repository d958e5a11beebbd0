"""WeightsService: versioned model weights in a content-addressed store, and channels that point to versions."""

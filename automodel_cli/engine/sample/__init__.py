"""Text from a trained checkpoint."""

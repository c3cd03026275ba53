"""The crops of a fold on their way into batches; mapped in the README above."""

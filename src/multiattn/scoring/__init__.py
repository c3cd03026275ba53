"""Frame probabilities in, video probabilities and metrics out, without torch or the disk; see README.md here."""

DEFAULT_PRIOR = 0.5
"""The answer for a video without a usable face. Here, so that a submission run has it before pandas is imported."""

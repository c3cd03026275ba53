"""Frame probabilities in, video probabilities and metrics out, without torch or the disk; see README.md here."""

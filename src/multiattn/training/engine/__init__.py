"""The training of one fold; mapped in the README above."""

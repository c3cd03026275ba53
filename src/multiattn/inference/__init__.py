"""Trained runs applied to videos; the files are listed in README.md."""

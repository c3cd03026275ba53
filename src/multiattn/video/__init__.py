"""Videos to aligned face crops; README.md has the map."""

"""Face crops: how they are cut, stored and read."""

"""Videos to crops, one by one and by the thousand."""

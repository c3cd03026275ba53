"""A page and a JSON API that examine videos and pictures on this machine; README.md has the files."""

"""A folder of videos -> a submission, offline and within a time budget; the files are listed in inference/README.md."""

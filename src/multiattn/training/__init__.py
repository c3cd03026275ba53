"""Face crops in, run folders out: sampling, augmentation, and the training of folds (README.md maps the files)."""

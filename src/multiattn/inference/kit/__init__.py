"""The offline kit of a Kaggle notebook; the files are listed in inference/README.md."""

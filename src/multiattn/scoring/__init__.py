"""Numbers only: frame probabilities in, video probabilities and metrics out. No torch, no disk.

metrics.py      log loss, AUC, accuracy of video probabilities
aggregation.py  frames -> tracks -> video -> mean over models -> clip: the one rule of validation and submission
"""

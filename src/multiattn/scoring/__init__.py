"""Numbers only: frame probabilities in, video probabilities and metrics out. No torch, no disk.

metrics.py      log loss, AUC, EER, calibration and all else the field reports, of videos or frames
bootstrap.py    intervals and paired comparisons, by groups of videos that are alike
aggregation.py  frames -> tracks -> video -> mean over models -> clip: the one rule of validation and submission
frame_groups.py a table of frame predictions sorted once, for any number of rules
frame_rules.py  frames -> one probability: means, medians, gates; RobustForensics' gate also for models
track_rules.py  tracks -> video: weighed, the most forged, the longest two
recipes.py      the aggregators that tuning tries, those of the winners among them
"""

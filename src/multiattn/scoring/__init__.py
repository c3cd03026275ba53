"""Numbers only: frame probabilities in, video probabilities and metrics out. No torch, no disk.

metrics.py      log loss, AUC, EER, calibration and all else the field reports, of videos or frames
bootstrap.py    intervals and paired comparisons, by groups of videos that are alike
aggregation.py  frames -> tracks -> video -> mean over models -> clip: the one rule of validation and submission
frame_groups.py a table of frame predictions sorted once, for any number of rules
frame_rules.py  frames -> one probability: means, medians, gates; RobustForensics' gate also for models
track_rules.py  tracks -> video: weighed, the most forged, the longest two
recipes.py      the aggregators that tuning tries, those of the winners among them
rule.py         the one rule from frame predictions to probabilities, which scoring.json keeps
ensembling.py   experiments -> one probability a video
ensemble_weights.py  their weights: on the simplex, by greedy selection, by stacking
calibration.py  temperature, Platt, beta, isotonic
prior_shift.py  to another share of fakes
clipping.py     the clip that costs least
tuning.py       out-of-fold predictions -> the rule; nested_tuning.py fits it on some folds and judges it on the others
selection.py    whether a fitted choice replaces the simple one
tuning_report.py  what was compared, for scoring.json and the terminal
simulation.py   predictions with a known truth
"""

"""Trained runs applied to videos.

runs.py               which models a runs folder holds
predictor.py          runs + faces folder -> frame predictions
folder_faces.py       faces of a plain folder of videos
out_of_fold.py        the log loss every run earned on videos it never saw
tuning.py             out-of-fold predictions -> the tuned rule
scoring_file.py       scoring.json, and which rule a command uses
scoring_steps.py      what each step from one fold to the tuned rule brings
kernel/               a folder of videos -> submission under a time budget; the notebook and `multiattn submit`
first_answer.py       a submission in the first second, of priors
submission.py         video probabilities -> submission.csv and card.json, checked against the sample
notebook.py           the notebook, headless
kit/                  all that an offline machine needs, in one folder
leaderboard.py        submissions scored against labels
published.py          the published log losses, each on its own one of the three DFDC scales
evaluation/           labelled videos of another data set -> figures with intervals
score_files.py, deciding_frames.py   single files by name; which of their crops say most
import_checkpoint.py  a released checkpoint -> a run folder
attention_maps.py     what the maps of a run look like on chosen faces
ablation.py           the finished cells of an ablation -> its table
"""

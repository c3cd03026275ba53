"""Trained runs applied to videos.

runs.py               which models a runs folder holds
predictor.py          runs + faces folder -> frame predictions
folder_faces.py       faces of a plain folder of videos
out_of_fold.py        the log loss every run earned on videos it never saw
leaderboard.py        submissions scored against labels, beside the published figures
submission.py         frame predictions -> submission.csv and card.json, checked against the sample
import_checkpoint.py  a released checkpoint -> a run folder
attention_maps.py     what the maps of a run look like on chosen faces
ablation.py           the finished cells of an ablation -> its table
kernel.py             a folder of videos -> submission, as the notebook and `multiattn submit` do it
"""

"""Runs measured on labelled videos they have never seen.

unseen.py            which videos a run knows; leaks are errors
answers.py           which videos, where their faces are, and what the models say of them
kept_predictions.py  predictions kept beside a result, made again only for what changed
measures.py          every figure in long form, with intervals
paper_figures.py     the paper's figures that apply, and what differs from its protocol
tables.py            tables for page and terminal
choice.py            the best run on a validation split
worst_videos.py      what went most wrong
run.py               all of it, from runs to a folder
"""

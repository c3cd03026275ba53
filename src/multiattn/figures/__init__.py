"""Pictures and pages, drawn without a display.

page.py              shared by all: colours, figures in inches, HTML that loads nothing; any name shown as it is
options.py           options of curves and faces, and those that attention and compare share
faces.py             contact sheet of a faces folder, the doubtful tracks first
augment.py           what augmentation makes of a few crops
curves.py            training curves of one run or several
attention.py         attention maps over faces, one run or several side by side
evaluation.py        a test: tables, reliability, ROC, histogram, the worst videos
score.py             scored files: P(fake) over time, deciding frames, attention
submission.py        a submission at a glance, for the notebook
comparisons.py       the leaderboard beside the published log losses, an ablation table as a dot plot
"""

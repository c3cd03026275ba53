"""The embedded data set: an official DFDC tree made on the spot from one public-domain portrait.

    actors.py  people made from the portrait
    clips.py   movement, light, background, camera noise; four ways to swap a face, with their traces
    tree.py    who plays in which clip, and the files on disk

Its scores say that the code works, and nothing about real deepfakes.
"""

from multiattn.datasets.embedded.tree import build_demo_dataset as build_demo_dataset
from multiattn.datasets.embedded.tree import plan_demo as plan_demo

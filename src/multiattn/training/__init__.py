"""Crops in, run folders out.

sampling.py     which crops an epoch visits: balanced, fresh, the same for any number of processes
augment.py      what happens to a crop before the network sees it
crops.py        the training table and its loaders
step.py         one training step: network, AGDA, losses
optimizer.py    optimiser and learning rate
distributed.py  ranks, and gathering what they computed
run_folder.py   what is saved, and how a killed run continues
loop.py         epochs: train, validate, save
"""

"""Crops in, run folders out.

sampling.py     which crops an epoch visits: balanced, fresh, the same for any number of processes
augment.py      what happens to a crop before the network sees it
crops.py        the training table and its loaders
step.py         one training step: network, AGDA, losses, in two backward passes
phases.py       the staged schedule: what each phase trains
optimizer.py    optimiser and learning rate
distributed.py  ranks, and gathering what they computed
run_folder.py   what is saved, and how a killed run continues
loop.py         epochs: train, validate, save
fold_runs.py    the folds of one experiment, one after the other
plain_network.py, bench.py  the same network written plainly, and both sides timed
"""

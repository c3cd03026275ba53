"""Crops in, run folders out.

sampling.py, pairs.py  which crops an epoch visits: balanced, paired or as they come; the same for any number of ranks
augment/               what happens to a crop before the network sees it; self-blended images
visits.py, crops.py    what a visit shows; the training table and its loaders
step.py                one batch: network, AGDA, losses, in two backward passes
phases.py              the staged schedule: what each phase trains
optimizer.py, apex.py  optimiser and learning rate; which apex is installed, and what a run can use of it
averaging.py           moving average of the weights, and the mean of saved ones
sync_norm.py           batch normalisation over all ranks, on CPUs too
distributed.py         ranks: gathering, and deciding together
fold_training.py       what one fold's training consists of, its state, and taking it up again
epoch.py, meter.py     the steps of an epoch; means of its loss terms
validation.py          the held-out videos, and which weights are the best
live.py                the live line and TensorBoard
interruption.py        SIGTERM: save, then end
state_file.py          resume.pt, and the one before it
run_folder.py          everything a run leaves
loop.py                one fold from first to last
fold_runs.py, fold_processes.py, fold_summary.py   all folds: in turn, or one on each GPU; how they ended
bench_data.py          crops a second
plain_network.py, bench.py  the same network written plainly, and both sides timed
"""

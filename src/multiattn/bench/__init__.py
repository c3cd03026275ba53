"""Benchmarks: what we do beside a plain version of it, `multiattn bench`.

options.py           options of data, faces, submit and gpu
harness.py           sides in processes of their own, in turns; seconds and peak memory
train.py             a training step or an eval forward: time, memory, share of what the device reaches
train_sides.py       their sides
data.py              crops a second from the disk to the training
faces.py             face extraction
submit.py            a folder of videos to a submission
machine.py           checks of machine and installation, for `multiattn doctor`
gpu.py               all that needs a GPU, tests too, as one table
"""

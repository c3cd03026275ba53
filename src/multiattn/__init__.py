"""Multi-attentional deepfake detection: from videos to a submission that minimises log loss.

    stages/     the doors: `multiattn <stage>`, in the order data walks through them
    config.py, experiments.py, tables.py, runtime.py, command_line.py   what every room stands on
    datasets/   official trees -> videos.csv; leak-free folds; the embedded demo set
    video/      decoding, detection, tracks, alignment, crops
    model/      the network and its losses
    scoring/    metrics and the one aggregator: NumPy and numba only
    training/   crops -> run folders
    inference/  run folders -> frame predictions -> submissions
    figures/    pictures

Imports run one way: base -> datasets, video, model, scoring -> training, inference, figures -> stages.

Letters in shapes: B batch, T time (frames), M attention maps, N channels of the texture stage, C channels, H and W
height and width. Labels: 0 = real, 1 = fake. `probability` is P(fake), `logit` is that before the sigmoid. Images are
RGB uint8 (H, W, 3) until the network's input; boxes are xyxy in pixels of the full frame; log loss is natural, float64.

The paper: Zhao et al., Multi-attentional Deepfake Detection, CVPR 2021, arXiv:2103.02406.
"""

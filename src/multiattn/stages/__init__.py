"""One file a command: its options, the packages it calls, the tables it writes. `multiattn --help` lists them."""

STAGES = (
    "demo",
    "index",
    "check",
    "faces",
    "folds",
    "train",
    "merge",
    "tune",
    "card",
    "predict",
    "pseudo_label",
    "submit",
    "blend",
    "verify",
    "leaderboard",
    "evaluate",
    "robustness",
    "score",
    "ablation",
    "figures",
    "import_checkpoint",
    "describe",
    "bundle",
    "bench",
)
"""In the order data passes through them, then those beside it."""

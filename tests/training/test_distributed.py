"""Two processes under torchrun: one run folder, every crop seen, the same files as one process leaves."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd

from multiattn.tables import FACES, FRAME_PREDICTIONS
from walk import Pipeline


def test_two_processes_train_one_fold_together(pipeline: Pipeline, tmp_path: Path):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "multiattn",
    ]
    command += ["train", "demo", "--tiny", "--fold", "0", "--device", "cpu", "--data.batch-size", "2"]
    command += ["--faces", str(pipeline.faces), "--folds", str(pipeline.folds), "--runs", str(tmp_path)]
    finished = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    folder = tmp_path / "demo_tiny" / "fold0"
    history = pd.read_csv(folder / "epochs.csv")
    alone = pd.read_csv(pipeline.experiment / "fold0" / "epochs.csv")
    # The global batch is the same 4 crops, but batch normalisation sees 2 of them a process: close, not equal.
    assert abs(history["cross_entropy"].iloc[0] - alone["cross_entropy"].iloc[0]) < 0.3
    oof = FRAME_PREDICTIONS.read(folder / "oof.parquet")
    expected = FRAME_PREDICTIONS.read(pipeline.experiment / "fold0" / "oof.parquet")
    key = ["video_id", "frame_index", "track"]
    pd.testing.assert_frame_equal(oof[key], expected[key])
    assert len(oof) < len(FACES.read(pipeline.faces / "faces.parquet"))

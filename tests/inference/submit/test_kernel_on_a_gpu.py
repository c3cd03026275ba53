"""The kernel on a GPU answers as on the CPU."""

import pytest
import torch

from multiattn.inference.submit import KernelInputs, run_kernel
from walk import Pipeline


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 2e-3), ("auto", 2e-2)])
def test_a_gpu_answers_as_the_cpu(pipeline: Pipeline, tmp_path, precision, tolerance):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    answers = []
    for device in ("cuda", "cpu"):
        inputs = KernelInputs(
            runs=(pipeline.experiment,),
            videos_dir=pipeline.dataset / "test_videos",
            sample_submission=pipeline.dataset / "sample_submission.csv",
            out=tmp_path / device,
            device=device,
            precision=precision if device == "cuda" else "fp32",
        )
        answers.append(run_kernel(inputs).submission["label"].to_numpy())
    assert answers[0] == pytest.approx(answers[1], abs=tolerance)

"""A folder of videos -> submission, offline: what `multiattn submit` and the Kaggle notebook both call.

inputs.py   where everything lies; how the notebook finds it
run.py      from inputs to the submission folder
"""

from multiattn.inference.kernel.inputs import KernelInputs, find_inputs
from multiattn.inference.kernel.run import run_kernel

__all__ = ["KernelInputs", "find_inputs", "run_kernel"]

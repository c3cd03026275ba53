"""A folder of videos -> submission, offline and in time: what `multiattn submit` and the Kaggle notebook both call.

inputs.py        where everything lies; how the notebook finds it
run.py           from inputs to the submission folder
judging.py       the work itself: extraction, classifier and plan together
extraction.py    videos -> crops in memory, in isolated processes, behind a bounded queue
classifier.py    crops -> logits: batches across videos, out of memory, damaged crops
models.py        the networks of all runs
plan.py          how many frames and models the next video gets
store.py         finished videos, one line of JSON each
delivery.py      the submission folder while the kernel runs
result.py        what it gives back
interruption.py  when this process began, and whether it was asked to end
bench.py         all of it beside the straightforward loop
"""

from multiattn.inference.submit.delivery import KernelResult
from multiattn.inference.submit.inputs import KernelInputs, find_inputs
from multiattn.inference.submit.plan import PlanChange
from multiattn.inference.submit.run import run_kernel

__all__ = ["KernelInputs", "KernelResult", "PlanChange", "find_inputs", "run_kernel"]

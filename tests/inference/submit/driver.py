"""The kernel in a process of its own, for tests that kill it: python driver.py ORDER.json

ORDER.json holds the fields of `KernelInputs` as text and numbers, `delay`: seconds that each batch takes longer, and
`idle`: seconds before the kernel begins, as slow imports take them.
"""

import json
import logging
import os
import sys
import time
from pathlib import Path

from multiattn.inference.submit import KernelInputs, run_kernel
from multiattn.inference.submit.classifier import LoadedModels

PATHS = ("videos_dir", "sample_submission", "out")


def slow_down(seconds: float) -> None:
    """Make every batch take longer."""
    logits = LoadedModels.logits

    def slow_logits(self, *arguments, **named):
        time.sleep(seconds)
        return logits(self, *arguments, **named)

    LoadedModels.logits = slow_logits


def main() -> None:
    """Run the kernel as the order says."""
    logging.basicConfig(level=logging.INFO)
    order = json.loads(Path(sys.argv[1]).read_text())
    slow_down(order.pop("delay", 0.0))
    time.sleep(order.pop("idle", 0.0))
    order = {name: Path(value) if name in PATHS else value for name, value in order.items()}
    result = run_kernel(KernelInputs(**{**order, "runs": tuple(map(Path, order["runs"]))}))
    logging.info("delivered after %.1f s: %s", result.seconds, result.coverage)
    logging.shutdown()
    os._exit(0)  # as `multiattn submit` ends where threads are still in torch


if __name__ == "__main__":
    main()

"""Multi-attentional deepfake detection: from videos to a submission that minimises log loss.

    __main__.py      `multiattn <stage>`: dispatch, and errors without a traceback
    stages/          one file a command: options in, packages called, tables out
    serve/           a page and an API on this machine
    bench/           every benchmark, beside a plain version
    figures/         pictures and pages
    evaluation/      results -> comparisons: labelled sets, leaderboard, ablation tables
    inference/       run folders -> frame predictions -> a submission, or the answer for one clip
    training/        crops -> run folders, fold by fold
    datasets/        official trees -> videos.csv; leak-free folds; the embedded demo set
    video/           videos -> face crops: decoding, detection, tracks, alignment
    model/           the network, its backbones, losses and AGDA
    scoring/         frame predictions -> one calibrated probability a video; no torch, no disk
    command_line.py  options as dataclasses
    experiments.py   one function an experiment
    tables.py        every table's columns, keys and checks
    config/          settings that check themselves; JSON in and out
    runtime/         files, signals, devices, processes: the machine

Each imports only from those below it: bench beside figures, training beside inference, and none of datasets, video,
model and scoring another of these four.

Letters in shapes: B batch, T time (frames), M attention maps, N channels of the texture stage, C channels, H and W
height and width. Labels: 0 = real, 1 = fake. `probability` is P(fake), `logit` is that before the sigmoid. Images are
RGB uint8 (H, W, 3) until the network's input; boxes are xyxy in pixels of the full frame; log loss is natural, float64.

As a library: `from multiattn import DeepfakeDetector, MultiAttentionNet, ModelConfig, load_run`.

The paper: Zhao et al., Multi-attentional Deepfake Detection, CVPR 2021, arXiv:2103.02406.
"""

import warnings
from typing import TYPE_CHECKING, Any

# Libraries ask tqdm for its notebook widget and warn where Jupyter lacks it; our bars are plain text. Here, before
# any of them can be imported.
warnings.filterwarnings("ignore", message="IProgress not found")

if TYPE_CHECKING:
    from multiattn.config import ModelConfig as ModelConfig
    from multiattn.inference.detector import DeepfakeDetector as DeepfakeDetector
    from multiattn.inference.runs import load_run as load_run
    from multiattn.model.network import MultiAttentionNet as MultiAttentionNet

__version__ = "0.2.0"
__all__ = ["DeepfakeDetector", "ModelConfig", "MultiAttentionNet", "load_run"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: torch takes seconds, and `multiattn --help` needs none."""
    if name == "ModelConfig":
        from multiattn.config import ModelConfig as found
    elif name == "MultiAttentionNet":
        from multiattn.model.network import MultiAttentionNet as found
    elif name == "DeepfakeDetector":
        from multiattn.inference.detector import DeepfakeDetector as found
    elif name == "load_run":
        from multiattn.inference.runs import load_run as found
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}.")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Settings as frozen dataclasses that check themselves; JSON in and out.

    choices.py    choices that options and packages share
    settings.py   checks, and settings as JSON and back: also for crop recipes and scoring rules
    model.py      settings of the network, its losses and AGDA
    training.py   settings of data, optimiser, phases and the whole experiment

A function of `experiments.py` builds an experiment, the command line changes it (`--optim.lr 1e-4`), and the run folder
keeps it as `experiment.json`.
"""

from multiattn.config.model import AgdaConfig as AgdaConfig
from multiattn.config.model import LossConfig as LossConfig
from multiattn.config.model import ModelConfig as ModelConfig
from multiattn.config.model import Padding as Padding
from multiattn.config.settings import from_json as from_json
from multiattn.config.settings import to_json as to_json
from multiattn.config.training import AverageConfig as AverageConfig
from multiattn.config.training import DataConfig as DataConfig
from multiattn.config.training import Experiment as Experiment
from multiattn.config.training import OptimConfig as OptimConfig
from multiattn.config.training import Phase as Phase
from multiattn.config.training import Precision as Precision
from multiattn.config.training import ValidationConfig as ValidationConfig
from multiattn.config.training import run_experiment as run_experiment

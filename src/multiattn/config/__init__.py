"""Settings of an experiment as frozen dataclasses that check themselves; JSON in and out.

An experiment is built by a function of `experiments.py`, changed from the command line (`--optim.lr 1e-4`), saved as
`experiment.json` in the run folder and read back from there. A value out of range or an unknown name never gets
past this room.
"""

from multiattn.config.model import AgdaConfig as AgdaConfig
from multiattn.config.model import LossConfig as LossConfig
from multiattn.config.model import ModelConfig as ModelConfig
from multiattn.config.settings import from_json as from_json
from multiattn.config.settings import to_json as to_json
from multiattn.config.training import AverageConfig as AverageConfig
from multiattn.config.training import DataConfig as DataConfig
from multiattn.config.training import Experiment as Experiment
from multiattn.config.training import OptimConfig as OptimConfig
from multiattn.config.training import Phase as Phase
from multiattn.config.training import ValidationConfig as ValidationConfig

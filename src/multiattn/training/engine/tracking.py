"""Curves of a fold for Weights & Biases, beside TensorBoard's: the optional extra `wandb`."""

import logging
import secrets
from collections.abc import Callable
from typing import Any

from multiattn.config import to_json
from multiattn.runtime.files import read_json, write_json
from multiattn.runtime.layout import TRACKER_FILE
from multiattn.runtime.paths import names_only
from multiattn.runtime.tensor_files import first_line
from multiattn.training.engine.run_folder import RunFolder, read_experiment

logger = logging.getLogger(__name__)

PROJECT, STEP = "multiattn", "update"
PATIENCE_SECONDS = 30


class Tracker:
    """One run of Weights & Biases for one fold, which a continued training goes on with.

    Its id is kept in the run folder, and so is what is recorded without a network: `wandb sync` sends it later. Where
    the service cannot be reached or has no key, it records offline (as with WANDB_MODE=offline) and says so. No error
    of it ends a training: it is told once, and nothing is recorded from there on.
    """

    def __init__(self, folder: RunFolder) -> None:
        import wandb  # an extra, without which `train` refuses --track

        self._name = folder.model_name
        self._run: Any = None
        path, experiment = folder.path / TRACKER_FILE, read_experiment(folder.path)
        if not path.is_file():
            write_json(path, {"wandb": secrets.token_hex(8)})
        known = {
            "project": PROJECT, "group": experiment.name, "name": folder.model_name, "id": read_json(path)["wandb"],
            "resume": "allow", "dir": str(folder.path), "config": names_only(to_json(experiment)),
        }  # fmt: skip

        def begin() -> None:
            try:
                self._run = wandb.init(**known, settings=wandb.Settings(init_timeout=PATIENCE_SECONDS))
            except wandb.errors.Error as error:
                logger.warning(
                    "%s: recorded offline, for wandb says: %s. `wandb sync` sends it.", self._name, first_line(error)
                )
                wandb.teardown()  # its service still holds the id
                self._run = wandb.init(**known, mode="offline")
            self._run.define_metric("*", step_metric=STEP)  # its own never goes back, as a training does

        self._try(begin)

    def log(self, figures: dict[str, float], update: int) -> None:
        """Add points to the curves, by the number of optimiser updates."""
        if self._run is not None:
            self._try(lambda: self._run.log({**figures, STEP: update}))

    def close(self) -> None:
        if self._run is not None:
            self._try(lambda: self._run.finish())

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # of its service's process, its files, or the network
            self._run = None
            logger.warning("%s: its curves end here for Weights & Biases: %s", self._name, first_line(error))

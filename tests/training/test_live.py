"""Pictures for TensorBoard: crops in the first row, a row a map below."""

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from multiattn.training.engine.live import attention_grid
from pipeline import Pipeline


@pytest.mark.parametrize(("num_crops", "num_maps"), [(1, 1), (3, 4), (2, 0)])
def test_the_grid_has_a_column_a_crop_and_a_row_a_map(num_crops, num_maps):
    generator = np.random.default_rng(0)
    crops = generator.integers(0, 256, (num_crops, 32, 32, 3), dtype=np.uint8)
    grid = attention_grid(crops, generator.random((num_crops, num_maps, 4, 4)) if num_maps else None)
    assert (grid.shape, grid.dtype) == (((1 + num_maps) * 32, num_crops * 32, 3), np.uint8)
    np.testing.assert_array_equal(grid[:32, :32], crops[0])


def test_a_map_is_bright_where_it_is_strong_and_a_dead_one_is_dark():
    crops, maps = np.full((1, 32, 32, 3), 100, np.uint8), np.zeros((1, 2, 4, 4))
    maps[0, 0, 0, 3] = 7.0
    grid = attention_grid(crops, maps).astype(int)
    strong, weak, dead = grid[32:40, -8:].mean(), grid[56:64, :8].mean(), grid[64:].mean()
    assert strong > 2 * weak
    assert dead == pytest.approx(weak, abs=1)


def test_a_run_leaves_scalars_and_a_picture_for_tensorboard(pipeline: Pipeline):
    events = EventAccumulator(str(pipeline.experiment / "fold0" / "tensorboard"))
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    assert {"train/loss", "train/learning_rate", "train/data_wait", "train/samples_per_second"} <= scalars
    assert {"validation/validation_log_loss", "validation/validation_frame_auc", "validation/map_cosine"} <= scalars
    assert events.Tags()["images"] == ["crops and attention maps"]

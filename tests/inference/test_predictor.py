"""Prediction refuses crops the models do not know, and half precision stays close to single."""

import dataclasses
import threading

import numpy as np
import pandas as pd
import pytest
import torch

from multiattn.inference import predictor
from multiattn.inference.predictor import predict_faces
from multiattn.inference.runs import find_models
from multiattn.model import precision
from multiattn.model.precision import TRIAL_CROPS, Trial
from multiattn.model.predict import predict_logits
from multiattn.scoring.frame_rules import sigmoid
from pipeline import Pipeline

CPU = torch.device("cpu")


def test_crops_made_another_way_are_refused(pipeline: Pipeline, tmp_path):
    models = find_models(pipeline.experiment)
    other = dataclasses.replace(models[0], recipe=dataclasses.replace(models[0].recipe, size=96))
    with pytest.raises(ValueError, match="size: expected 96, found 64"):
        predict_faces([other], pipeline.faces, device=CPU, precision="fp32")


@pytest.mark.parametrize(
    "failure", [None, RuntimeError("CUDA error: unspecified launch failure"), MemoryError()], ids=str
)
def test_two_devices_predict_as_one_even_where_one_fails_midway(pipeline: Pipeline, monkeypatch, failure):
    model, crops, together = find_models(pipeline.experiment)[0], {}, threading.Barrier(2)

    def observed(network: torch.nn.Module, batches: list[torch.Tensor], **how: object) -> np.ndarray:
        own = crops.setdefault(id(network), [])
        if failure is not None and len(crops) == 2 and list(crops)[1] == id(network) and len(own) == 2:
            raise failure
        own.append(len(batches[0]))
        if failure is None or len(own) <= 2:
            together.wait(timeout=30)  # equally fast, whatever the machine's load
        return predict_logits(network, batches, **how)

    how = {"precision": "fp32", "batch_size": 3}
    alone = predict_faces([model], pipeline.faces, device=CPU, **how)
    monkeypatch.setattr(predictor, "predict_logits", observed)
    pd.testing.assert_frame_equal(predict_faces([model], pipeline.faces, device=[CPU, CPU], **how), alone)
    first, second = map(sum, crops.values())
    assert first + second == len(alone) == 48, "16 batches"
    assert second == 6 if failure else min(first, second) >= 0.4 * len(alone)


def test_an_error_that_is_no_devices_fault_ends_it(pipeline: Pipeline, monkeypatch):
    monkeypatch.setattr(predictor, "predict_logits", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        models = find_models(pipeline.experiment)[:1]
        predict_faces(models, pipeline.faces, device=[CPU, CPU], precision="fp32")


def test_bf16_is_close_to_fp32(pipeline: Pipeline):
    models = find_models(pipeline.experiment)[:1]
    found = [predict_faces(models, pipeline.faces, device=CPU, precision=name) for name in ("fp32", "bf16")]
    assert np.abs(found[0]["probability"] - found[1]["probability"]).max() < 2e-2


@pytest.mark.parametrize(("change", "name"), [(1e-3, "bf16"), (1e-2, "fp32")])
def test_auto_is_bf16_where_it_is_faster_and_the_answers_stay(pipeline: Pipeline, monkeypatch, caplog, change, name):
    tried: list[torch.Size] = []

    def measured(network: torch.nn.Module, crops: torch.Tensor) -> Trial:
        tried.append(crops.shape)
        return Trial(seconds_fp32=0.2, seconds_bf16=0.1, change=change)

    monkeypatch.setattr(precision, "processor_flags", lambda: frozenset({"avx512_bf16"}))
    monkeypatch.setattr(predictor, "try_prediction", measured)
    models = find_models(pipeline.experiment)[:1]
    with caplog.at_level("INFO"):
        found = predict_faces(models, pipeline.faces, device=CPU, precision="auto")
    assert f"{models[0].name}: predicts in {name}: " in caplog.text
    pd.testing.assert_frame_equal(found, predict_faces(models, pipeline.faces, device=CPU, precision=name))
    ((count, *shape),) = tried
    assert 1 <= count <= TRIAL_CROPS and shape == [64, 64, 3]


def test_no_crops_give_an_empty_table():
    assert predict_logits(torch.nn.Identity(), [], device=CPU, precision="fp32").shape == (0,)


def test_weights_that_overflow_are_reported_and_the_networks_mode_is_given_back(pipeline: Pipeline):
    network = find_models(pipeline.experiment)[0].load(CPU).train()
    crops = [torch.zeros(2, 64, 64, 3, dtype=torch.uint8)]
    predict_logits(network, crops, device=CPU, precision="fp32")
    assert network.training
    torch.nn.init.constant_(network.classifier.joint[-1].bias, float("nan"))
    with pytest.raises(ValueError, match="2 of 2 logits are not finite"):
        predict_logits(network, crops, device=CPU, precision="fp32")


def test_sigmoid_does_not_overflow():
    assert sigmoid(np.array([-1e4, 0.0, 1e4])).tolist() == [0.0, 0.5, 1.0]

"""What `--precision auto` becomes: by the device, the processor's flags and a trial of the network."""

import math
from pathlib import Path

import pytest
import torch

from multiattn.config import Experiment, ModelConfig
from multiattn.experiments import get_experiment
from multiattn.model import precision
from multiattn.model.network import make_network
from multiattn.model.precision import (
    Trial,
    known_precision,
    processor_flags,
    resolve_precision,
    training_precision,
    try_prediction,
    try_training,
)

CPU = torch.device("cpu")
TINY = get_experiment("demo", tiny=True)
AMX = ("fpu", "amx_bf16", "amx_tile")
FASTER, NO_FASTER = Trial(0.2, 0.1), Trial(0.2, 0.19)


@pytest.mark.parametrize(
    ("flags", "trial", "name", "reason"),
    [
        pytest.param((), None, "fp32", "no bf16 arithmetic", id="empty: no flags known"),
        pytest.param(("avx2", "avx512f"), None, "fp32", "no bf16 arithmetic", id="AVX-512 without bf16"),
        pytest.param(AMX, FASTER, "bf16", "amx_bf16: 100 ms a batch in bf16, 200 ms in float32", id="AMX, faster"),
        pytest.param(("avx512_bf16",), FASTER, "bf16", "avx512_bf16", id="AVX512-BF16, faster"),
        pytest.param(AMX, NO_FASTER, "fp32", "not faster", id="hardly faster"),
        pytest.param(AMX, Trial(1.1, 1.0), "bf16", "amx_bf16", id="just fast enough"),
        pytest.param(AMX, Trial(0.1, 0.3), "fp32", "not faster", id="slower"),
        pytest.param(AMX, Trial(0.2, 0.1, 2e-3), "bf16", "amx_bf16", id="answers just near enough"),
        pytest.param(AMX, Trial(0.2, 0.1, 2.1e-3), "fp32", "up to 2.1e-03, more than 0.002", id="answers too far"),
        pytest.param(AMX, Trial(0.2, 0.1, math.nan), "fp32", "changes P(fake)", id="an answer that is no number"),
    ],
)
def test_a_cpu_takes_bf16_where_it_has_it_and_gains_by_it(flags, trial, name, reason, monkeypatch):
    def measured() -> Trial:
        assert trial is not None, "a processor without bf16 needs no trial"
        return trial

    monkeypatch.setattr(precision, "processor_flags", lambda: frozenset(flags))
    found = resolve_precision("auto", CPU, measured)
    assert found.name == name
    assert reason in found.reason


@pytest.mark.parametrize(
    ("asked", "resolved"), [("auto", "fp32"), ("fp32", "fp32"), ("bf16", "bf16"), ("fp16", "fp16")]
)
def test_without_a_trial_a_cpu_computes_in_float32_unless_another_is_asked_for(asked, resolved, monkeypatch):
    monkeypatch.setattr(precision, "processor_flags", lambda: frozenset(AMX))
    assert resolve_precision(asked, CPU).name == resolved


@pytest.mark.parametrize(("has_it", "resolved"), [(True, "bf16"), (False, "fp16")])
def test_a_gpu_computes_in_the_half_precision_it_has(has_it, resolved, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_it)
    assert resolve_precision("auto", torch.device("cuda")).name == resolved


@pytest.mark.parametrize(
    ("flags", "recorded", "trial", "name"),
    [
        pytest.param((), None, None, "fp32", id="new, no bf16"),
        pytest.param(AMX, None, FASTER, "bf16", id="new, bf16 is faster"),
        pytest.param(AMX, None, NO_FASTER, "fp32", id="new, bf16 is not faster"),
        pytest.param(AMX, "fp32", None, "fp32", id="begun in float32 goes on in it"),
        pytest.param(AMX, "bf16", None, "bf16", id="begun in bf16 goes on in it"),
        pytest.param((), "bf16", None, "fp32", id="moved to a processor without bf16"),
        pytest.param(AMX, "fp16", FASTER, "bf16", id="begun on an old GPU"),
    ],
)
def test_a_run_trains_in_what_it_was_begun_with(flags, recorded, trial, name, monkeypatch):
    def measured(_: Experiment) -> Trial:
        assert trial is not None, "what is recorded needs no trial"
        return trial

    monkeypatch.setattr(precision, "processor_flags", lambda: frozenset(flags))
    monkeypatch.setattr(precision, "try_training", measured)
    assert training_precision(TINY, CPU, recorded=recorded).name == name


def test_a_trial_of_training_times_both_and_draws_no_random_number():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    found = try_training(TINY)
    assert 0 < found.seconds_fp32 < 60 and 0 < found.seconds_bf16 < 60
    assert found.change == 0
    assert torch.equal(torch.get_rng_state(), before)


def test_a_trial_of_prediction_compares_the_answers_and_leaves_the_network_as_it_was():
    network = make_network(ModelConfig(backbone="test_efficientnet", pretrained=False, attention_stage="L3")).train()
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    crops = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    found = try_prediction(network, crops)
    assert found.seconds_fp32 > 0 and found.seconds_bf16 > 0
    assert 0 < found.change < 0.1
    assert network.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(math.nan)
    computed = []
    network.register_forward_hook(lambda *_: computed.append(1))
    assert math.isnan(try_prediction(network, crops).change)
    assert len(computed) == 2, "after answers that bf16 may not give, no time is of use"


@pytest.mark.parametrize(
    ("flags", "asked", "known"),
    [((), "auto", "fp32"), (AMX, "auto", "auto"), (AMX, "fp32", "fp32"), (AMX, "bf16", "bf16")],
)
def test_a_precision_stays_open_only_where_each_network_is_tried(flags, asked, known, monkeypatch):
    monkeypatch.setattr(precision, "processor_flags", lambda: frozenset(flags))
    assert known_precision(asked, CPU) == known


def test_the_flags_of_this_processor_are_words():
    assert all(flag == flag.strip().lower() and " " not in flag for flag in processor_flags())


@pytest.mark.parametrize(
    ("bound", "is_left"),
    [("", True), ("ALL", True), ("AVX512_CORE_AMX", True), ("avx512_core", False), ("AVX2", False)],
)
def test_what_torch_may_not_use_the_processor_does_not_have(bound, is_left, monkeypatch, tmp_path):
    (tmp_path / "cpuinfo").write_text("processor: 0\nflags\t\t: avx2 avx512f avx512_bf16\n")
    monkeypatch.setattr(precision, "Path", lambda path: tmp_path / Path(path).name)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", bound)
    assert processor_flags.__wrapped__() == {"avx2", "avx512f"} | ({"avx512_bf16"} if is_left else set())

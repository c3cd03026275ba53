"""What a kernel does with answers that could be better: those given in haste, and files that could not be read."""

from pathlib import Path

import numpy as np
import pytest
from kernel_case import PRIOR, SAME, in_this_process

from multiattn.inference.submit.classifier import LoadedModels
from multiattn.inference.submit.plan import Plan


@pytest.mark.parametrize("time_left", [False, True], ids=["no time", "time"])
def test_with_time_left_a_run_looks_again_at_what_it_was_too_hasty_with(case, tmp_path, monkeypatch, time_left):
    case, adapt = case.copy(tmp_path), Plan._adapt

    def hasty(self) -> None:
        adapt(self) if self._second_look else setattr(self, "_index", len(self.levels) - 1)

    monkeypatch.setattr(Plan, "_adapt", hasty)
    if not time_left:
        monkeypatch.setattr(Plan, "has_time", False)
    result = in_this_process(case, monkeypatch, budget_hours=1)
    assert result.reduced == (0 if time_left else 8)
    assert (case.read() == pytest.approx(case.answers, abs=SAME)) == time_left


def test_a_second_look_that_fails_takes_no_answer_away(case, tmp_path, monkeypatch):
    case, logits = case.copy(tmp_path), LoadedModels.logits
    with monkeypatch.context() as patch:
        patch.setattr(Plan, "_adapt", lambda self: setattr(self, "_index", len(self.levels) - 1))
        patch.setattr(Plan, "has_time", False)
        in_this_process(case, patch, budget_hours=1)
    first = case.read()
    with monkeypatch.context() as patch:
        patch.setattr(LoadedModels, "logits", lambda *_, **__: np.full(1, np.nan))
        assert in_this_process(case, patch).reduced == 8
    assert case.read() == first
    assert LoadedModels.logits is logits


def missing(path: Path) -> None:
    path.unlink()


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize("how", [missing, cut_off], ids=lambda how: how.__name__)
def test_a_file_that_is_whole_again_is_judged_by_the_next_run(case, tmp_path, monkeypatch, how):
    """Missing for a while, as on a network's disk; or still being copied when the kernel came by."""
    case, name = case.copy(tmp_path), min(name for name, label in case.answers.items() if label != PRIOR)
    path, start = case.inputs.videos_dir / name, Plan.start
    content = path.read_bytes()

    def broken_first(self):
        if path.is_file() and path.read_bytes() == content:
            how(path)
        return start(self)

    with monkeypatch.context() as patch:
        patch.setattr(Plan, "start", broken_first)
        in_this_process(case, patch)
    assert case.card()["coverage"]["unreadable"] == 2 and case.read()[name] == PRIOR
    path.write_bytes(content)
    in_this_process(case, monkeypatch)
    assert case.card()["coverage"]["unreadable"] == 1
    assert case.require_no_wrong_row() == 8

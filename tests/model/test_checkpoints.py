"""Checkpoints: a written file comes back, a tensor that does not fit is named."""

import pytest
import torch
from torch import nn

from multiattn.model.checkpoints import load_weights, save_weights
from multiattn.runtime.tensor_files import read_metadata


class Small(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(3, width, 3)


def test_weights_and_metadata_come_back(tmp_path):
    module, other = Small(), Small()
    module.norm.running_mean.fill_(3.0)
    module.norm.num_batches_tracked.fill_(17)
    save_weights(module, tmp_path / "best.safetensors", {"epoch": "3"})
    load_weights(other, tmp_path / "best.safetensors")
    for (name, found), expected in zip(other.state_dict().items(), module.state_dict().values(), strict=True):
        assert torch.equal(found, expected), name
    assert read_metadata(tmp_path / "best.safetensors") == {"epoch": "3"}


@pytest.mark.parametrize(
    "notes",
    [
        pytest.param({}, id="none"),
        pytest.param({"a": ""}, id="one"),
        pytest.param({f"{name}é": f'"\\\n\x07\x7f\u2028 {name}' for name in "hgfedcba"}, id="many of odd signs"),
    ],
)
def test_the_same_weights_and_notes_make_the_same_file(notes, tmp_path):
    path, module, contents = tmp_path / "x.safetensors", Small(), set()
    for _ in range(5):
        save_weights(module, path, notes)
        contents.add(path.read_bytes())
    assert len(contents) == 1 and read_metadata(path) == notes
    load_weights(Small(), path)


def test_a_file_without_notes_has_empty_metadata(tmp_path):
    save_weights({"x": torch.ones(1)}, tmp_path / "x.safetensors", {})
    assert read_metadata(tmp_path / "x.safetensors") == {}


def test_tied_strided_scalar_and_empty_tensors_come_back(tmp_path):
    module = Small().to(memory_format=torch.channels_last)
    module.second.weight = module.first.weight
    save_weights(module, tmp_path / "tied.safetensors", {})
    other = Small()
    load_weights(other, tmp_path / "tied.safetensors")
    assert torch.equal(other.first.weight, module.first.weight)
    assert torch.equal(other.second.weight, module.first.weight)
    base = torch.arange(6.0).view(2, 3)
    state = {"transposed": base.t(), "view": base[0], "scalar": torch.tensor(2.0), "empty": torch.zeros(0, 3)}
    save_weights(state, tmp_path / "odd.safetensors", {})
    holder = nn.Module()
    for name, tensor in state.items():
        holder.register_buffer(name, torch.full_like(tensor, -1.0))
    load_weights(holder, tmp_path / "odd.safetensors")
    assert all(torch.equal(getattr(holder, name), tensor) for name, tensor in state.items())


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path):
    path = tmp_path / "best.safetensors"
    save_weights({"x": torch.ones(2)}, path, {})
    before = path.read_bytes()
    with pytest.raises(ValueError, match="metadata must map str to str"):
        save_weights({"x": torch.zeros(2)}, path, {"epoch": 3})
    with pytest.raises(Exception, match="meta"):
        save_weights({"x": torch.zeros(2, device="meta")}, path, {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def misfits():
    state = Small().state_dict()
    return {
        "missing": ({k: v for k, v in state.items() if k != "first.bias"}, r"1 missing \(first\.bias\)"),
        "unexpected": ({**state, "head.weight": torch.ones(2)}, r"1 unexpected \(head\.weight\)"),
        "another shape": (
            {**state, "first.bias": torch.ones(9)},
            r"1 of another shape \(first\.bias \(9,\) instead of \(4,\)\)",
        ),
        "another network": (Small(8).state_dict(), r"8 of another shape \(first\.weight .*, \.\.\.\)"),
        "wrapped by DDP": ({f"module.{k}": v for k, v in state.items()}, r"9 missing .* 9 unexpected \(module\."),
        "one tensor only": ({"first.bias": state["first.bias"]}, "8 missing"),
        "integers": (
            {**state, "first.bias": torch.ones(4, dtype=torch.int64)},
            r"1 no floating-point numbers \(first\.bias torch\.int64\)",
        ),
        "a NaN": ({**state, "first.bias": torch.tensor([0, 0, 0, torch.nan])}, r"1 not finite \(first\.bias\)"),
        "an infinite half": (
            {**state, "norm.running_var": torch.full((4,), torch.inf).half()},
            r"1 not finite \(norm\.running_var\)",
        ),
    }


@pytest.mark.parametrize("name", misfits())
def test_weights_that_do_not_fit_are_refused_before_anything_changes(tmp_path, name):
    state, message = misfits()[name]
    path = tmp_path / "other.safetensors"
    save_weights(state, path, {})
    module = Small()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(ValueError, match=message) as caught:
        load_weights(module, path)
    assert str(path) in str(caught.value) and "another experiment" in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize("kind", ["truncated", "cut in the header", "text", "pickle", "empty"])
@pytest.mark.parametrize("read", [lambda path: load_weights(Small(), path), read_metadata], ids=["load", "metadata"])
def test_a_damaged_file_is_named(tmp_path, kind, read):
    path = tmp_path / "broken.safetensors"
    save_weights(Small(), path, {"epoch": "1"})
    whole = path.read_bytes()
    if kind == "pickle":
        torch.save(Small().state_dict(), path)
    else:
        contents = {"truncated": whole[:-50], "cut in the header": whole[:30], "text": b"hello" * 9, "empty": b""}
        path.write_bytes(contents[kind])
    with pytest.raises(ValueError, match=r"broken\.safetensors: not a complete safetensors file"):
        read(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors"):
        load_weights(Small(), tmp_path / "nowhere.safetensors")

"""Averages of a network's weights as candidates for validation: the moving one, and the mean of saved weights."""

from collections.abc import Sequence
from pathlib import Path

from timm.utils import ModelEmaV3
from torch import Tensor, nn

from multiattn.model.checkpoints import load_weights
from multiattn.runtime.tensor_files import read_state, state_problems


def moving_average(network: nn.Module, *, decay: float, warmup: bool = True) -> ModelEmaV3:
    """timm's exponential moving average of a network's weights, whose `module` is the averaged network in eval mode.

    After the n-th update, average <- average + (1 - d_n) (weights - average). As timm has it, d_1 = 0: the average
    begins as the weights after the first update. From the second on, d_n = `decay`, or with a warm-up
    min(decay, 1 - n^(-2/3)), which is nearly a plain mean at first: it passes 0.9 at n = 32, 0.99 at n = 1000 and 0.999
    at n = 31,623. Running statistics of batch normalisation are averaged like weights; integers
    (`num_batches_tracked`) are copied. bf16 and fp16 training keep float32 weights, so nothing is rounded away.

    The network is copied: convert, move and speed up its layers before, compile and wrap it after. Updates count from 1
    and through all phases.
    """
    return ModelEmaV3(network, decay=decay, use_warmup=warmup).requires_grad_(False)


def average_of(paths: Sequence[Path]) -> dict[str, Tensor]:
    """The mean of saved weights, each file counting the same (stochastic weight averaging, arXiv:1803.05407).

    Floating-point tensors are averaged in float64 and keep their dtype; others (`num_batches_tracked`) are those of
    the last file.

    Raises:
        FileNotFoundError: a file that is not there.
        ValueError: no files, a file that is not safetensors, or one with other tensors than the first.

    Departures: the running statistics of batch normalisation are averaged like the weights, not estimated again by a
    pass over the data, as the paper does. For weights of one run, a few epochs apart, the two are close; where they are
    not, the average loses at validation and is not kept.
    """
    if not paths:
        raise ValueError("expected at least one weights file to average, found none.")
    first = read_state(paths[0])
    sums = {name: tensor.double() for name, tensor in first.items() if tensor.is_floating_point()}
    last = first
    for path in paths[1:]:
        last = read_state(path)
        if problems := state_problems(first, last):
            raise ValueError(f"{path}: cannot be averaged with {paths[0]}: {'; '.join(problems)}.")
        for name, total in sums.items():
            total += last[name]
    return last | {name: (total / len(paths)).to(first[name].dtype) for name, total in sums.items()}


def load_average(network: nn.Module, paths: Sequence[Path]) -> None:
    """Fill a network with the mean of saved weights; it is untouched unless every tensor fits.

    Raises:
        FileNotFoundError: a file that is not there.
        ValueError: as `average_of`, or the weights of another network.
    """
    state = average_of(paths)
    load_weights(network, paths[0])  # refuses the weights of another network
    network.load_state_dict(state)

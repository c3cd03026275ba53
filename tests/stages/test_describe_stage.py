"""`multiattn describe` as it stands on the terminal, and for programs."""

import json

import pytest

from multiattn.experiments import EXPERIMENTS
from multiattn.stages.describe import WIDTH, main


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_is_described_within_the_width_of_a_terminal(name, capsys):
    main([name, "--tiny"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{name}_tiny: ")
    assert max(map(len, lines)) <= WIDTH
    assert not any(line != line.rstrip() for line in lines)


@pytest.mark.slow
def test_the_tables_of_the_released_form_at_full_size(capsys):
    main(["dfdc_b4_official"])
    out = capsys.readouterr().out
    lines = {line.split("  ")[0]: line for line in out.splitlines()}
    assert "static padding, M = 4 attention maps on a grid of 23x23" in out
    assert lines["f_5 = SL_a"].split("  ")[-1].split()[-1] == "16"
    assert "(B, 4, 23, 23)" in lines["A"]
    assert lines["frozen"].split()[:5] == ["frozen", "3", "network", "backbone", "-"]
    assert lines["full"].split()[:5] == ["full", "30", "network", "-", "soft"]
    assert "m_out 0.8, m_in 0.2 real / -0.8 fake" in lines["auxiliary"]
    assert lines["loss"].split(maxsplit=1)[1] == "1 CE(I) + 0.5 RIL(V) + 1 CE(I') + 0.1 match(V, V')"
    assert lines["loss.intra_margin_fake"].split()[1:] == ["-0.8", "0.1"]
    assert max(map(len, out.splitlines())) <= WIDTH


def test_json_says_what_each_phase_trains(capsys):
    main(["dfdc_b4_official", "--tiny", "--json"])
    found = json.loads(capsys.readouterr().out)
    parts = {part["name"]: part["parameters"] for part in found["parts"]}
    (last,) = (layer["shape"] for layer in found["layers"] if layer["symbols"] == ["f_last"])
    head = 2 * last[0] + 2
    trainable = [phase["trainable_parameters"] for phase in found["phases"]]
    total = found["total"]["parameters"]
    assert trainable == [parts["backbone"] + head, total - parts["backbone"], total]
    assert found["experiment"]["model"]["attention"] == "masked-elu"
    assert found["departures"]["model.attention"] == {"found": "masked-elu", "paper": "relu"}


def test_settings_of_the_experiment_are_options(capsys):
    main(["demo", "--tiny", "--model.num-maps", "1", "--data.image-size", "96", "--json"])
    found = json.loads(capsys.readouterr().out)
    shapes = {layer["symbols"][-1]: layer["shape"] for layer in found["layers"]}
    assert shapes["I"] == [3, 96, 96]
    assert shapes["A"] == [1, 12, 12]
    assert (found["auxiliary_loss"], found["agda"]) == (False, False), "one map uses neither"


def test_the_margin_loss_has_weights_that_are_trained_too(capsys):
    main(["demo", "--tiny", "--loss.auxiliary", "ams", "--json"])
    found = json.loads(capsys.readouterr().out)
    maps, width = next(layer["shape"] for layer in found["layers"] if layer["symbols"] == ["V"])
    assert found["phases"][0]["trainable_parameters"] == found["total"]["parameters"] + maps * width


def test_the_experiment_comes_first():
    with pytest.raises(ValueError, match="the experiment comes before all options: multiattn describe demo"):
        main(["--tiny", "demo"])


def test_what_is_trained_and_what_a_step_takes_is_told_for_a_tuned_backbone(capsys):
    figures = {}
    for tune in ("all", "norms", "head"):
        main(["demo", "--tiny", "--model.tune", tune, "--loss.auxiliary", "align-uniform", "--json"])
        figures[tune] = json.loads(capsys.readouterr().out)
    behind = sum(part["parameters"] for part in figures["head"]["parts"] if part["name"] != "backbone")
    assert figures["head"]["total"]["trained"] == figures["head"]["phases"][0]["trainable_parameters"] == behind
    backbone = {tune: found["parts"][0]["trained"] for tune, found in figures.items()}
    assert backbone["all"] == figures["all"]["parts"][0]["parameters"] > backbone["norms"] > backbone["head"] == 0
    memory = {tune: found["step_memory"] for tune, found in figures.items()}
    assert memory["all"]["total"] > memory["norms"]["total"] > memory["head"]["total"]
    weights = 4 * figures["norms"]["total"]["trained"]
    assert memory["norms"]["optimizer"] == pytest.approx(2 * weights, rel=0.01)  # Adam's two moments
    main(["demo", "--tiny", "--model.tune", "head", "--loss.auxiliary", "align-uniform"])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert f"{behind:,} parameters" in lines["trained"] and "(tune head)" in lines["trained"]
    assert "MiB at least for a step of 4 crops in fp32" in lines["memory"]
    assert lines["auxiliary"].split(maxsplit=1)[1] == "0.1 alignment + 0.5 uniformity of the features"

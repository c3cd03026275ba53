"""`multiattn ablation` on the miniature: every cell, on other data too, continued, and with a cell that fails."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from multiattn.__main__ import main
from multiattn.evaluation.ablation_table import DEMO_NOTE
from multiattn.evaluation.ablations import get_ablation
from multiattn.runtime.files import read_json, write_json
from multiattn.tables import FACES, FRAME_PREDICTIONS, VIDEO_STATUS, VIDEOS
from pipeline import Pipeline, run


@pytest.fixture(scope="module")
def other_faces(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature's faces as those of another data set: other names, the same crops."""
    folder = tmp_path_factory.mktemp("ablation") / "other"
    shutil.copytree(pipeline.faces, folder)
    for table, name in ((FACES, "faces.parquet"), (VIDEO_STATUS, "video_status.csv"), (VIDEOS, "videos.csv")):
        rows = table.read(folder / name)
        rows["video_id"] = "celebdf/" + rows["video_id"]
        table.write(rows.assign(dataset="celebdf", part="") if table is VIDEOS else rows, folder / name)
    return folder


def words(pipeline: Pipeline, folder: Path, table: str, *more: object) -> list[str]:
    inputs = ("--faces", pipeline.faces, "--folds", pipeline.folds, "--seeds", 1, "--device", "cpu")
    outputs = ("--runs", folder / "runs", "--out", folder / "out")
    return [str(word) for word in ("ablation", table, "--tiny", *inputs, *outputs, *more)]


@pytest.mark.slow
def test_every_cell_is_trained_once_and_measured_on_both_data(pipeline, other_faces, tmp_path):
    command = words(pipeline, tmp_path, "4", "--cross-faces", other_faces)
    run(*command)
    table = pd.read_csv(tmp_path / "out/table_4_tiny.csv").set_index("cell")
    assert table["status"].tolist() == ["measured"] * 3 + ["quoted"] * 2
    trained = table[table["status"] == "measured"]
    for column in ("FF++ HQ AUC %", "Celeb-DF AUC %"):
        assert trained[column].between(0, 100).all()
        assert (trained[f"{column} difference"] - (trained[column] - trained[f"{column} paper"])).abs().max() < 1e-9
        assert table.loc[table["status"] == "quoted", f"{column} difference"].isna().all()
    page = (tmp_path / "out/table_4_tiny.md").read_text()
    assert DEMO_NOTE in page and str(tmp_path) not in page and "--tiny" in page
    assert (tmp_path / "out/table_4_tiny.png").stat().st_size > 10_000
    names = sorted(f"{cell.experiment.name}_seed0" for cell in get_ablation("4", tiny=True).cells if cell.experiment)
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == names
    assert {read_json(path / "fold0/experiment.json")["seed"] for path in (tmp_path / "runs").iterdir()} == {7}
    cross = FRAME_PREDICTIONS.read(tmp_path / "runs" / names[0] / "cross_other.parquet")
    assert len(cross) == len(FACES.read(other_faces / "faces.parquet"))

    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.*") if path.name != ".lock"}
    written = {path: path.read_bytes() for path in (tmp_path / "out").glob("*.[cm]*")}
    run(*command)
    assert {path: path.stat().st_mtime_ns for path in made} == made, "finished runs were touched"
    assert {path: path.read_bytes() for path in written} == written


@pytest.mark.slow
def test_a_cell_that_fails_is_reported_and_the_others_go_on(pipeline, tmp_path, capsys):
    experiments = [cell.experiment for cell in get_ablation("demo", tiny=True).cells]
    in_the_way = tmp_path / "runs" / f"{experiments[1].name}_seed0" / "fold0"
    shutil.copytree(pipeline.experiment / "fold0", in_the_way)
    settings = read_json(in_the_way / "experiment.json")
    settings["loss"]["inter_margin"] = 0.7
    write_json(in_the_way / "experiment.json", settings)
    assert main(words(pipeline, tmp_path, "demo")) == 2
    assert "1 of 4 cells failed" in capsys.readouterr().err
    table = pd.read_csv(tmp_path / "out/table_demo_tiny.csv").set_index("cell")
    assert table["status"].to_dict() == dict.fromkeys(table.index, "measured") | {"RIL without AGDA": "failed"}
    page = (tmp_path / "out/table_demo_tiny.md").read_text()
    assert "loss.inter_margin: 0.7 there, 0.2 asked" in page

    shutil.rmtree(in_the_way)
    run(*words(pipeline, tmp_path, "demo"))
    whole = pd.read_csv(tmp_path / "out/table_demo_tiny.csv").set_index("cell")
    assert set(whole["status"]) == {"measured"} and whole["held-out video log loss"].between(0, 5).all()
    others = whole.index != "RIL without AGDA"
    pd.testing.assert_frame_equal(table[others], whole[others])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(["--seeds", "0"], "--seeds: expected at least 1", id="no seed"),
        pytest.param(["--fold", "7"], "--fold 7: no such fold; folds present: 0, 1", id="no such fold"),
        pytest.param(["--fold", "x"], "--fold: expected a number or `all`", id="no number"),
        pytest.param(["--cross-faces", "nowhere"], "not a faces folder", id="no faces to test on"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_trained(pipeline, tmp_path, capsys, changes, message):
    assert main([*words(pipeline, tmp_path, "1"), *changes]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()

"""DeepFakeDetection in the FaceForensics++ tree, in its official form."""

from pathlib import Path

import pytest
from made_trees import make_files, rows_by_id

from multiattn.datasets.dfd import read_dfd

ACTORS = "original_sequences/actors"
SWAPS = "manipulated_sequences/DeepFakeDetection"
REAL = "24__outside_talking_still_laughing.mp4"
FAKE = "24_23__outside_talking_still_laughing__YR5OVD4S.mp4"


def make_clip(root: Path, sequence: str, name: str, level: str = "c23") -> None:
    make_files(root, f"{sequence}/{level}/videos/{name}")


def rows_by_name(listing) -> dict[str, dict]:
    return {Path(path).name: row for path, row in rows_by_id(listing, "path").items()}


def test_actors_and_swaps_become_rows_without_a_split(tmp_path):
    make_clip(tmp_path, ACTORS, REAL)
    make_clip(tmp_path, SWAPS, FAKE)
    rows = rows_by_name(read_dfd(tmp_path))
    assert rows[FAKE] == {
        "video_id": f"dfd/{SWAPS}/c23/videos/24_23__outside_talking_still_laughing__YR5OVD4S",
        "path": f"{SWAPS}/c23/videos/{FAKE}",
        "dataset": "dfd",
        "label": 1,
        "method": "DeepFakeDetection",
        "compression": "c23",
        "split": "",
        "part": "",
        "original": f"dfd/{ACTORS}/c23/videos/24__outside_talking_still_laughing",
        "target_id": "24",
        "source_id": "23",
    }
    assert rows[REAL]["video_id"] == rows[FAKE]["original"]
    assert rows[REAL] == rows[REAL] | {"label": 0, "method": "", "original": "", "target_id": "24", "source_id": ""}


@pytest.mark.parametrize(
    "real",
    [
        pytest.param(None, id="no real at all"),
        pytest.param("24__kitchen_pan.mp4", id="another scene"),
        pytest.param("23__outside_talking_still_laughing.mp4", id="the source's clip of the scene"),
    ],
)
def test_a_swap_whose_target_has_no_clip_of_the_scene_names_no_original(real, tmp_path):
    make_clip(tmp_path, SWAPS, FAKE)
    if real is not None:
        make_clip(tmp_path, ACTORS, real)
    assert rows_by_name(read_dfd(tmp_path))[FAKE]["original"] == ""


@pytest.mark.parametrize(
    ("on_disk", "asked", "found"),
    [("raw", "raw", "raw"), ("c0", "raw", "raw"), ("raw", "c0", "raw"), ("c23", "c23", "c23"), ("c40", "c40", "c40")],
)
def test_a_level_is_found_under_both_of_its_names(on_disk, asked, found, tmp_path):
    for level in {"c23", "c40", on_disk}:
        make_clip(tmp_path, ACTORS, REAL, level)
    rows = read_dfd(tmp_path, compression=asked).rows
    assert [(row["compression"], row["path"]) for row in rows] == [(found, f"{ACTORS}/{on_disk}/videos/{REAL}")]


def test_an_original_as_raw_is_found_for_a_swap_as_c0(tmp_path):
    make_clip(tmp_path, ACTORS, REAL, "raw")
    make_clip(tmp_path, SWAPS, FAKE, "c0")
    rows = rows_by_name(read_dfd(tmp_path, compression="raw"))
    assert rows[FAKE]["original"] == rows[REAL]["video_id"]


def test_clips_of_faceforensics_itself_and_masks_are_not_dfd(tmp_path):
    make_clip(tmp_path, "original_sequences/youtube", "519.mp4")
    make_clip(tmp_path, "manipulated_sequences/Deepfakes", "519_515.mp4")
    make_clip(tmp_path, SWAPS, FAKE, "masks")
    assert read_dfd(tmp_path).rows == []


@pytest.mark.parametrize(
    ("sequence", "name", "form"),
    [
        pytest.param(ACTORS, FAKE, "<actor>__<scene>", id="a swap among the actors"),
        pytest.param(ACTORS, "24_kitchen_pan.mp4", "<actor>__<scene>", id="one underscore"),
        pytest.param(SWAPS, REAL, "<target>_<source>__<scene>__", id="an actor's clip among the swaps"),
        pytest.param(SWAPS, "24_23__kitchen_pan.mp4", "<target>_<source>__<scene>__", id="no id"),
        pytest.param(SWAPS, "24_23__kitchen_pan__yr5ovd4s.mp4", "<target>_<source>", id="an id in small letters"),
        pytest.param(SWAPS, "24_23__kitchen_pan__YR5OVD4S (1).mp4", "<target>_<source>", id="a copy"),
    ],
)
def test_a_name_that_is_not_the_official_one_is_refused_with_its_path(sequence, name, form, tmp_path):
    make_clip(tmp_path, sequence, name)
    with pytest.raises(ValueError, match=form) as caught:
        read_dfd(tmp_path)
    assert str(tmp_path / sequence / "c23/videos" / name) in str(caught.value)

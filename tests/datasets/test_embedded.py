"""The embedded data set: the official tree, the plan behind it, and how carefully it is written."""

import hashlib
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest

from multiattn.datasets.embedded import build_demo_dataset, plan_demo
from multiattn.datasets.embedded.actors import Bump, displacement, fit_affine, make_actor
from multiattn.datasets.embedded.clips import FRAME_RATE, RECIPES, make_forger, make_take, render_frames


@pytest.fixture(scope="module")
def full_plan():
    return plan_demo(7)


def metadata(root: Path) -> dict[str, dict[str, dict]]:
    """The metadata of every part: {folder: {file name: row}}."""
    return {p.parent.name: json.loads(p.read_text()) for p in sorted(root.glob("dfdc_train_part_*/metadata.json"))}


def digests(root: Path) -> dict[str, str]:
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_the_tree_and_the_metadata_have_the_official_form_and_originals_lie_in_the_same_part(
    small_dataset: Path,
) -> None:
    assert sorted(p.name for p in small_dataset.iterdir()) == sorted(
        ["demo.json", "dfdc_train_part_0", "dfdc_train_part_1"]
        + ["groups.csv", "labels.csv", "sample_submission.csv", "test_videos"]
    )
    for folder, rows in metadata(small_dataset).items():
        assert sorted(rows) == sorted(p.name for p in (small_dataset / folder).glob("*.mp4"))
        for name, row in rows.items():
            assert re.fullmatch(r"[a-z]{10}\.mp4", name)
            assert row["label"] in ("REAL", "FAKE")
            assert row["split"] == "train"
            assert set(row) == {"label", "split", *(["original"] if row["label"] == "FAKE" else [])}
        originals = [row["original"] for row in rows.values() if row["label"] == "FAKE"]
        assert originals and all(rows[original]["label"] == "REAL" for original in originals)


def test_labels_and_sample_submission_list_exactly_the_test_files(small_dataset):
    labels, sample = pd.read_csv(small_dataset / "labels.csv"), pd.read_csv(small_dataset / "sample_submission.csv")
    assert list(labels.columns) == list(sample.columns) == ["filename", "label"]
    names = sorted(p.name for p in (small_dataset / "test_videos").iterdir())
    assert list(labels.filename) == list(sample.filename) == names
    assert set(labels.label) == {0, 1}
    assert (sample.label == 0.5).all()


def test_the_group_of_a_test_clip_is_the_original_it_was_made_of(small_dataset):
    groups = pd.read_csv(small_dataset / "groups.csv")
    labels = pd.read_csv(small_dataset / "labels.csv").set_index("filename")["label"]
    assert list(groups.columns) == ["filename", "group"]
    assert list(groups["filename"]) == list(labels.index)
    assert (labels[groups["group"]] == 0).all()
    assert list(groups["filename"] == groups["group"]) == list(labels == 0)
    people = json.loads((small_dataset / "demo.json").read_text())["clips"]
    for row in groups.itertuples():
        assert people[row.filename]["target"] == people[row.group]["target"]
    takes = {clip.filename: clip.take_seed for clip in plan_demo(7, small=True).test}
    assert all(takes[row.filename] == takes[row.group] for row in groups.itertuples())


def test_a_set_made_before_there_were_groups_gets_them_and_keeps_every_other_file(
    small_dataset: Path, tmp_path: Path
) -> None:
    root = tmp_path / "old"
    shutil.copytree(small_dataset, root)
    (root / "groups.csv").unlink()
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()}
    for _ in range(2):  # the second time on a finished root
        build_demo_dataset(root, seed=7, jobs=1, small=True)
        assert digests(root) == digests(small_dataset)
        assert {p: p.stat().st_mtime_ns for p in before} == before


def test_clips_are_h264_of_the_planned_length_but_for_the_truncated_one_that_cannot_be_opened(
    small_dataset: Path,
) -> None:
    clips = {clip.filename: clip for clip in plan_demo(7, small=True).clips}
    paths = list(small_dataset.rglob("*.mp4"))
    assert len(paths) == len(clips)  # also: no name twice in the whole set
    assert sorted(clip.defect for clip in clips.values() if clip.defect) == ["faceless", "truncated"]
    for path in paths:
        if clips[path.name].defect == "truncated":
            assert path.stat().st_size > 0
            with pytest.raises(av.error.InvalidDataError):
                av.open(str(path))
            continue
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
            assert sum(1 for _ in container.decode(video=0)) == clips[path.name].num_frames


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_with_one_job_and_with_two(small_dataset, tmp_path):
    build_demo_dataset(tmp_path / "again", seed=7, jobs=2, small=True)  # the other was made with one
    assert digests(tmp_path / "again") == digests(small_dataset)


def test_another_seed_gives_other_names_and_other_pictures() -> None:
    first, second = plan_demo(7, small=True), plan_demo(8, small=True)
    assert not {c.filename for c in first.clips} & {c.filename for c in second.clips}
    pictures = [make_actor(plan.actor_seeds["part0_actor0"]).rgba for plan in (first, second)]
    assert not np.array_equal(*pictures)


def test_a_finished_root_of_another_seed_is_refused(small_dataset):
    with pytest.raises(ValueError, match=r"expected .*'seed': 8.*found .*'seed': 7"):
        build_demo_dataset(small_dataset, seed=8, small=True)


@pytest.mark.parametrize("content", ["hello", "[]", '{"seed": 7}'], ids=["no json", "no object", "no version"])
@pytest.mark.parametrize("name", ["notes.txt", "demo.json"])
def test_a_folder_that_is_not_ours_is_refused_and_left_untouched(tmp_path: Path, name: str, content: str) -> None:
    root = tmp_path / "mine"
    root.mkdir()
    (root / name).write_text(content)
    with pytest.raises(ValueError, match="Choose another folder"):
        build_demo_dataset(root, small=True)
    assert [(p.name, p.read_text()) for p in root.iterdir()] == [(name, content)]
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "mine"]


def test_a_foreign_partial_folder_is_refused_and_left_untouched(tmp_path: Path) -> None:
    (tmp_path / "demo.partial").mkdir()
    (tmp_path / "demo.partial" / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="unfinished"):
        build_demo_dataset(tmp_path / "demo", small=True)
    assert (tmp_path / "demo.partial" / "thesis.txt").read_text() == "precious"


def test_the_full_plan_has_the_promised_counts_and_ratios(full_plan) -> None:
    assert len(full_plan.training) == 150
    assert Counter(c.label for c in full_plan.test) == {0: 18, 1: 18}
    assert {c.part for c in full_plan.training} == set(range(5))
    for part in range(5):
        assert Counter(c.label for c in full_plan.training if c.part == part) == {0: 10, 1: 20}
    assert all(2 <= c.num_frames / FRAME_RATE <= 4 for c in full_plan.clips)
    assert len({c.filename for c in full_plan.clips}) == len(full_plan.clips)
    assert sorted(c.defect for c in full_plan.clips if c.defect) == ["faceless", "truncated"]


def test_every_recipe_occurs_in_every_part_and_among_the_test_clips(full_plan) -> None:
    assert len(RECIPES) >= 3
    for part in range(-1, 5):
        assert {c.recipe for c in full_plan.clips if c.part == part and c.label} == set(RECIPES)


@pytest.mark.parametrize("small", [False, True])
def test_actors_stay_in_their_part_and_a_fake_mixes_two_of_them(small: bool) -> None:
    plan = plan_demo(7, small)
    by_part: dict[int, set[str]] = {}
    for clip in plan.clips:
        by_part.setdefault(clip.part, set()).update({clip.target_id, clip.source_id} - {""})
        assert bool(clip.source_id) == bool(clip.label)
        assert clip.source_id != clip.target_id
    groups = list(by_part.values())
    assert sum(map(len, groups)) == len(set.union(*groups)) == len(plan.actor_seeds)
    assert len(set(plan.actor_seeds.values())) == len(plan.actor_seeds)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_forgery_changes_the_face_and_leaves_the_rest_of_the_original(recipe: str) -> None:
    target, source = make_actor((1, 2)), make_actor((1, 3))
    take = make_take((5, 6), num_frames=2)
    real = list(render_frames(take, target))
    fake = list(render_frames(take, target, make_forger(recipe, source, target, (9,), num_frames=2)))
    for before, after in zip(real, fake, strict=True):
        changed = (before != after).any(axis=2)
        assert 0.01 < changed.mean() < 0.25
        assert not changed[:8].any()
        assert not changed[-8:].any()


def test_growing_by_a_bump_takes_pixels_nearer_to_the_centre_and_no_bump_moves_nothing() -> None:
    x, y = np.array([[0.0, 10.0]]), np.array([[0.0, 0.0]])
    dx, dy = displacement(x, y, [Bump(centre=(0, 0), width=(1e6, 1e6), grow=(0.1, 0.1))])
    np.testing.assert_allclose(dx, [[0.0, -1.0]], atol=1e-9)
    np.testing.assert_allclose(dy, 0, atol=1e-9)
    assert not np.any(displacement(x, y, []))


def test_an_affine_map_is_recovered_from_five_points() -> None:
    points = np.random.default_rng(0).uniform(0, 100, (5, 2))
    matrix = np.array([[1.1, -0.2, 5.0], [0.1, 0.9, -3.0]])
    np.testing.assert_allclose(fit_affine(points, points @ matrix[:, :2].T + matrix[:, 2]), matrix, atol=1e-9)

"""The leaderboard: scored as scikit-learn scores, on one scale at a time, as pages, table and picture."""

import html
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn import metrics

from multiattn.evaluation.leaderboard import NOT_COMPARABLE, SCALES, among_kaggles_400, scale_of, score_submissions
from multiattn.figures.comparisons import draw_leaderboard, leaderboard_page
from multiattn.figures.page import write_png
from multiattn.scoring.metrics import bootstrap_log_loss, compare_log_loss
from multiattn.stages import leaderboard as stage
from page_reader import Reader

NAMES = [f"{number:04d}.mp4" for number in range(40)]
LABELS = np.arange(40) % 2


def submit(folder: Path, name: str, probabilities, *, names=NAMES, card: dict | None = None) -> None:
    (folder / name).mkdir(parents=True)
    pd.DataFrame({"filename": names, "label": probabilities}).to_csv(folder / name / "submission.csv", index=False)
    if card is not None:
        (folder / name / "card.json").write_text(json.dumps(card))


def write_labels(path: Path, labels=LABELS, names=NAMES) -> Path:
    pd.DataFrame({"filename": names, "label": labels}).to_csv(path, index=False)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three submissions, the best of them in the middle of the alphabet."""
    rng = np.random.default_rng(0)
    for name, skill in (("a_guess", 0.0), ("b_good", 0.5), ("c_fair", 0.2)):
        probabilities = 0.5 + skill * (LABELS - 0.5) + rng.uniform(-0.1, 0.1, 40)
        card = {
            "coverage": {"ok": 37, "no_face": 2, "unreadable": 1, "missing": 0},
            "out_of_fold": {"log_loss": 0.25, "balanced_log_loss": 0.2, "auc": 0.9, "last_epoch_log_loss": 0.3},
            "seen_in_training": 0,
        }
        submit(tmp_path / "submissions", name, probabilities, card=card)
    return tmp_path / "submissions"


@pytest.fixture
def labels(tmp_path) -> Path:
    return write_labels(tmp_path / "labels.csv")


def test_scores_equal_those_of_scikit_learn_best_first(folder, labels):
    board = score_submissions(folder, labels)
    assert board.ours["name"].tolist() == ["b_good", "c_fair", "a_guess"]
    for row in board.ours.itertuples():
        submitted = pd.read_csv(folder / row.name / "submission.csv")["label"]
        assert row.log_loss == pytest.approx(metrics.log_loss(LABELS, submitted), abs=1e-12)
        assert row.auc == pytest.approx(metrics.roc_auc_score(LABELS, submitted), abs=1e-12)
        assert row.accuracy == pytest.approx(metrics.accuracy_score(LABELS, submitted > 0.5), abs=1e-12)
        assert (row.num_videos, row.no_face, row.unreadable, row.missing) == (40, 2, 1, 0)
        assert (row.failed, row.late) == (0, 0), "the statuses named count all 40, so the others have none"
        assert (row.out_of_fold_log_loss, row.out_of_fold_last_epoch_log_loss) == (0.25, 0.3)
        of_classes = [
            metrics.log_loss(LABELS[label == LABELS], submitted[label == LABELS], labels=[0, 1]) for label in (0, 1)
        ]
        assert row.balanced_log_loss == pytest.approx(np.mean(of_classes))


def test_labels_are_joined_by_name_not_by_position(folder, tmp_path):
    order = np.random.default_rng(1).permutation(40)
    shuffled = write_labels(tmp_path / "shuffled.csv", LABELS[order], [NAMES[index] for index in order])
    straight = write_labels(tmp_path / "straight.csv")
    pd.testing.assert_frame_equal(
        score_submissions(folder, shuffled).ours,
        score_submissions(folder, straight).ours,
        check_exact=False,
        rtol=1e-12,
    )


def test_without_labels_only_out_of_fold_figures_are_shown(folder):
    board = score_submissions(folder, None)
    assert board.ours[["log_loss", "auc", "accuracy"]].isna().all(axis=None)
    assert board.ours["name"].tolist() == ["a_guess", "b_good", "c_fair"]
    assert "no labels" in board.scored_on
    unscored = " | ".join(["no labels"] * 7)
    assert (
        f"| a_guess | {unscored} | 40 | 2 no face, 1 unreadable | 0 | 0.2500 (balanced 0.2000) | 0.3000 |"
        in board.markdown()
    )


def test_a_submission_that_lacks_a_video_is_listed_last_without_metrics(folder, labels):
    submit(folder, "aa_partial", np.full(39, 0.5), names=NAMES[:-1])
    board = score_submissions(folder, labels)
    assert board.ours["name"].tolist()[-1] == "aa_partial"
    last = board.ours.iloc[-1]
    assert math.isnan(last["log_loss"])
    assert last["num_videos"] == 39
    page = board.markdown()
    assert "| aa_partial | lacks 1 of the labelled videos |" in page
    assert page.index("| constant 0.5 |") < page.index("| aa_partial |")


@pytest.mark.parametrize(
    ("labels", "auc"), [pytest.param(LABELS[:10], 0.5, id="10 of 40"), pytest.param([1] * 40, np.nan, id="one class")]
)
def test_a_submission_is_scored_on_the_videos_that_are_labelled(labels, auc, tmp_path):
    submit(tmp_path / "s", "x", np.full(40, 0.5))
    board = score_submissions(tmp_path / "s", write_labels(tmp_path / "l.csv", labels, NAMES[: len(labels)]))
    assert board.ours[["log_loss", "auc"]].to_numpy()[0] == pytest.approx([math.log(2), auc], nan_ok=True)
    assert f"{len(labels)} videos" in board.scored_on


def test_one_submission_of_one_video_without_a_card(tmp_path):
    submit(tmp_path / "s", "x", [1.0], names=["a.mp4"])
    board = score_submissions(tmp_path / "s", write_labels(tmp_path / "l.csv", [0], ["a.mp4"]))
    row = board.ours.iloc[0]
    assert np.isnan([row["low"], row["difference_low"], row["probability_better"]]).all(), "one video has no interval"
    page = board.markdown()
    assert "nan" not in page and "NA" not in page
    assert "| fewer than 5 groups |" in page and "| one class |" in page
    figure = draw_leaderboard(board)
    assert figure.axes[0].get_xlim()[1] > row["log_loss"]
    assert 30 < row["log_loss"] < 40, "a confident mistake of somebody's file stays finite"
    assert math.isnan(row["out_of_fold_log_loss"])


COUNTS = ["no_face", "unreadable", "missing", "failed", "late", "seen_in_training"]


@pytest.mark.parametrize(
    ("card", "counts", "cells"),
    [
        pytest.param(None, [None] * 6, "not known | not known", id="no card"),
        pytest.param({}, [None] * 6, "not known | not known", id="a card without either"),
        pytest.param(
            {"coverage": None, "seen_in_training": None}, [None] * 6, "not known | not known", id="a card of nulls"
        ),
        pytest.param({"coverage": {"ok": 40}}, [0] * 5 + [None], "none | not known", id="every video predicted"),
        pytest.param({"seen_in_training": 0}, [None] * 5 + [0], "not known | 0", id="nothing seen"),
        pytest.param(
            {"coverage": {"ok": 37, "late": 3}, "seen_in_training": 7}, [0, 0, 0, 0, 3, 7], "3 late | 7", id="all known"
        ),
        pytest.param(
            {"coverage": {"ok": 30, "no_face": 2}, "seen_in_training": 0},
            [2, None, None, None, None, 0],
            "2 no face, others not known | 0",
            id="eight videos without a status",
        ),
    ],
)
def test_what_no_card_says_is_shown_as_not_known_and_not_as_none(card, counts, cells, tmp_path):
    submit(tmp_path / "s", "x", np.full(40, 0.5), card=card)
    board = score_submissions(tmp_path / "s", write_labels(tmp_path / "l.csv"), resamples=100)
    assert f"| 40 | {cells} | not known | not known |" in board.markdown()
    board.table().to_csv(tmp_path / "board.csv", index=False)
    row = pd.read_csv(tmp_path / "board.csv", dtype=str, keep_default_na=False).iloc[0]
    assert row[COUNTS].tolist() == ["" if count is None else str(count) for count in counts]
    assert ("x was trained on 7 of the videos" in board.markdown()) == (counts[-1] == 7)


@pytest.mark.parametrize("kind", ["no folder", "empty folder", "a folder without a submission", "a file beside"])
def test_a_folder_without_submissions_is_refused_with_the_command(kind, tmp_path):
    folder = tmp_path / "submissions"
    if kind != "no folder":
        folder.mkdir()
    if kind == "a folder without a submission":
        (folder / "x").mkdir()
    if kind == "a file beside":
        (folder / "submission.csv").write_text("filename,label\na.mp4,0.5\n")
    with pytest.raises(FileNotFoundError, match="multiattn submit"):
        score_submissions(folder, None)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        pytest.param("submission.csv", "filename,label\na.mp4,2\n", "label", id="a label out of range"),
        pytest.param("submission.csv", "", "not a readable submission", id="an empty submission"),
        pytest.param("card.json", "{", "expected a JSON file", id="a broken card"),
        pytest.param("card.json", "[]", "card", id="a card that is a list"),
        pytest.param("card.json", '{"coverage": {"ok": "x"}}', "whole numbers in coverage", id="a status of a word"),
        pytest.param("card.json", '{"coverage": [1]}', "whole numbers in coverage", id="a coverage that is a list"),
        pytest.param("card.json", '{"seen_in_training": 0.5}', "whole numbers in coverage", id="half a video seen"),
    ],
)
def test_a_broken_submission_is_refused_with_its_path(name, content, expected, folder, labels):
    (folder / "b_good" / name).write_text(content)
    with pytest.raises(ValueError, match=expected) as caught:
        score_submissions(folder, labels)
    assert str(folder / "b_good" / name) in str(caught.value)


def test_labels_that_are_not_there_are_refused(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.csv"):
        score_submissions(folder, tmp_path / "nothing.csv")


@pytest.mark.parametrize("groups", [None, np.arange(40) // 5], ids=["single videos", "groups as a whole"])
def test_the_interval_and_the_comparison_are_those_of_the_bootstrap(groups, folder, labels, tmp_path):
    path = None if groups is None else tmp_path / "groups.csv"
    if path is not None:
        pd.DataFrame({"filename": NAMES, "group": groups}).to_csv(path, index=False)
    board = score_submissions(folder, labels, path, resamples=2000).ours.set_index("name")
    given = {name: pd.read_csv(folder / name / "submission.csv")["label"].to_numpy() for name in board.index}
    for name, row in board.iterrows():
        interval = bootstrap_log_loss(LABELS, given[name], groups, clip=1e-15, resamples=2000)
        assert (row["low"], row["high"]) == (interval.low, interval.high)
        found = compare_log_loss(LABELS, given[name], given["b_good"], groups, clip=1e-15, resamples=2000)
        assert row["difference"] == pytest.approx(row["log_loss"] - board.loc["b_good", "log_loss"], abs=1e-12)
        assert (row["difference_low"], row["probability_better"]) == (found.low, found.probability_better)
    assert (board.loc["b_good", ["difference", "difference_low", "difference_high"]] == 0).all()


@pytest.mark.parametrize("grouped", [False, True])
def test_the_stage_writes_pages_and_picture_that_say_what_the_bootstrap_draws(
    grouped, folder, labels, tmp_path, capsys
):
    pd.DataFrame({"filename": NAMES, "group": np.arange(40) // 8}).to_csv(tmp_path / "groups.csv", index=False)
    words, out = ["--groups", str(tmp_path / "groups.csv")] if grouped else [], tmp_path / "out"
    stage.main(["--submissions", str(folder), "--labels", str(labels), "--out", str(out), "--resamples", "100", *words])
    assert sorted(path.name for path in out.iterdir()) == [
        f"leaderboard.{kind}" for kind in ("csv", "html", "md", "png")
    ]
    assert len(pd.read_csv(out / "leaderboard.csv")) == 4
    said = "draws the 5 groups of groups.csv" if grouped else "draws single videos"
    page = Reader((out / "leaderboard.html").read_text()).text
    for text in (page, (out / "leaderboard.md").read_text(), capsys.readouterr().out):
        assert "b_good" in text
        assert f"95 %: of the bootstrap, which {said}." in " ".join(text.split())
    board = score_submissions(folder, labels, tmp_path / "groups.csv" if grouped else None, resamples=100)
    figure = draw_leaderboard(board)
    assert figure.axes[0].get_xlabel().endswith(said)


def test_figures_on_other_videos_have_no_published_ones_beside_them(folder, labels):
    board = score_submissions(folder, labels)
    page = board.markdown()
    assert board.scale is None
    assert NOT_COMPARABLE in page
    assert "| constant 0.5 | 0.6931 | 0.6931 to 0.6931 | 0.6931 | +" in page
    places = [page.index(f"| {name} |") for name in ("b_good", "c_fair", "constant 0.5", "a_guess")]
    assert places == sorted(places), "the constant stands where its score puts it"
    assert board.table()["name"].tolist() == ["b_good", "c_fair", "constant 0.5", "a_guess"]
    for name in ("b_good", "Selim Seferbekov | 0.1983", "Selim Seferbekov | 0.4280", "40 videos of labels.csv"):
        assert name in page
    assert set(board.table()["source"]) == {"ours", "reference"}


def test_every_row_of_the_page_has_the_cells_of_its_header(folder, labels):
    submit(folder, "partial", [0.5], names=NAMES[:1])
    blocks = score_submissions(folder, labels).markdown().split("\n\n")
    tables = [block.splitlines() for block in blocks if block.startswith("|")]
    assert [len(table) for table in tables] == [2 + 4 + 1, *(2 + len(scale.anchors) for scale in SCALES.values())]
    assert all(len({line.count("|") for line in table}) == 1 for table in tables)


@pytest.mark.parametrize(
    ("list_name", "scale", "best_anchor"),
    [
        pytest.param("dfdc_test_labels.csv", "released", 0.1679, id="the released test set"),
        pytest.param("dfdc_val_labels.csv", "public", 0.25322, id="the public leaderboard"),
    ],
)
def test_a_real_label_list_is_compared_on_its_own_scale_alone(shared, tmp_path, list_name, scale, best_anchor):
    labels = pd.read_csv(shared / "lists" / list_name)
    assert scale_of(labels["filename"][1:]) is None, "one video less is another scale"
    rng = np.random.default_rng(0)
    for number in range(4):
        noise = rng.normal(0, 0.15 + 0.05 * number, len(labels))
        answers = np.clip(0.5 + 0.35 * (2 * labels["label"] - 1) + noise, 0.01, 0.99)
        submit(tmp_path / "s", f"s{number}", answers, names=labels["filename"])
    board = score_submissions(tmp_path / "s", shared / "lists" / list_name)
    assert board.scale is SCALES[scale]
    table = board.table()
    published = table[table["source"] == "published"]
    assert published["log_loss"].min() == best_anchor
    assert set(published["num_videos"]) == {len(labels)}
    others = [name for name in SCALES if name != scale]
    assert not any(SCALES[name].title in board.markdown() for name in others)
    assert board.ours["name"].tolist() == ["s0", "s1", "s2", "s3"]


def test_a_scale_can_be_named_where_the_file_names_say_nothing(folder, labels):
    board = score_submissions(folder, labels, scale="private", resamples=100)
    assert board.scale is SCALES["private"]
    assert ["only if you know it" in warning for warning in board.warnings] == [True]
    board = score_submissions(folder, labels, scale="none", resamples=100)
    assert (board.scale, board.warnings) == (None, [])


@pytest.mark.parametrize("scale", ["private", "public"])
def test_a_scale_that_the_file_names_contradict_is_refused(shared, tmp_path, scale):
    labels = shared / "lists" / "dfdc_test_labels.csv"
    submit(tmp_path / "s", "x", np.full(5000, 0.5), names=pd.read_csv(labels)["filename"])
    with pytest.raises(ValueError, match="of the released scale"):
        score_submissions(tmp_path / "s", labels, scale=scale, resamples=100)
    board = score_submissions(tmp_path / "s", labels, scale="released", resamples=100)
    assert (board.scale, board.warnings) == (SCALES["released"], [])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(None, "no such file", id="no file"),
        pytest.param("", "not a readable groups file", id="empty"),
        pytest.param("filename,part\n", "columns filename and group", id="another column"),
        pytest.param("filename,group\n0000.mp4,a\n", "none for 39: 0001.mp4", id="videos without a group"),
        pytest.param("filename,group\n0000.mp4,a\n0000.mp4,b\n", "several for 1", id="two groups of a video"),
        pytest.param(
            "filename,group\n" + "".join(f"{name},\n" for name in NAMES), "found none for 40", id="empty cells"
        ),
    ],
)
def test_groups_that_do_not_fit_are_refused_with_their_path(content, expected, folder, labels, tmp_path):
    groups = tmp_path / "groups.csv"
    if content is not None:
        groups.write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=expected) as caught:
        score_submissions(folder, labels, groups, resamples=100)
    assert str(groups) in str(caught.value)


def test_long_names_of_a_series_stay_apart_in_the_picture(tmp_path):
    names = ["dfdc_b4_paired_mean_over_folds_temperature_seed0", *(f"{'dfdc_b4' * 20}_seed{k}" for k in range(2))]
    names += [f"seed{number}_{'dfdc_b4' * 20}" for number in range(2)]
    for name in names:
        submit(tmp_path / "s", name, np.full(40, 0.5))
    board = score_submissions(tmp_path / "s", write_labels(tmp_path / "l.csv"), resamples=100)
    figure = draw_leaderboard(board)
    words = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(set(words)) == 5
    assert all(len(line) <= 32 for word in words for line in word.split("\n"))
    assert words[0].replace("\n", "") == names[0]


@pytest.mark.parametrize(
    ("some", "others", "said"),
    [
        pytest.param(slice(None), 0, "these are Kaggle's 400 public test videos", id="all of them"),
        pytest.param(slice(1, None), 0, "399 of these 399 videos are among Kaggle's 400", id="all but one"),
        pytest.param(slice(200, 201), 0, "this video is among Kaggle's 400", id="one"),
        pytest.param(slice(0, 3), 40, "3 of these 43 videos are among Kaggle's 400", id="a few among others"),
        pytest.param(slice(0, 0), 40, None, id="none of them"),
    ],
)
def test_kaggles_400_videos_are_known_by_their_names(some, others, said, shared, tmp_path):
    names = [*pd.read_csv(shared / "lists" / "kaggle_sample_submission.csv")["filename"][some], *NAMES[:others]]
    labels = write_labels(tmp_path / "l.csv", np.arange(len(names)) % 2, names)
    submit(tmp_path / "s", "x", np.full(len(names), 0.5), names=names)
    warnings = score_submissions(tmp_path / "s", labels, resamples=100).warnings
    assert [said in warning and "dfdc_train_part_0 to 2" in warning for warning in warnings] == [True] * (
        said is not None
    )


def test_of_all_names_of_the_dfdc_only_the_400_are_taken_for_them(shared):
    names = ("dfdc_test_labels", "dfdc_val_labels", "dfdc_train_videos", "kaggle_sample_submission")
    lists = {name: pd.read_csv(shared / "lists" / f"{name}.csv") for name in names}
    found = [among_kaggles_400(table["filename" if "filename" in table else "name"]) for table in lists.values()]
    assert found == [0, 0, 400, 400]


def test_the_400_are_known_in_another_folder_and_format(shared):
    name = pd.read_csv(shared / "lists" / "kaggle_sample_submission.csv")["filename"][0]
    assert among_kaggles_400([f"videos/{name}", name.replace(".mp4", ".mkv"), f"x{name}", ""]) == 2


@pytest.mark.parametrize("scale", ["released", "public", "private"])
@pytest.mark.parametrize("count", [400, 399, 1])
def test_kaggles_400_are_on_no_scale_whichever_is_asked_for(count, scale, shared, tmp_path):
    names = pd.read_csv(shared / "lists" / "kaggle_sample_submission.csv")["filename"][:count]
    labels = write_labels(tmp_path / "l.csv", np.arange(count) % 2, names)
    submit(tmp_path / "s", "x", np.full(count, 0.5), names=names)
    with pytest.raises(ValueError, match="none of the three scales"):
        score_submissions(tmp_path / "s", labels, scale=scale, resamples=100)
    board = score_submissions(tmp_path / "s", labels, scale="none", resamples=100)
    assert board.scale is None and len(board.warnings) == 1


@pytest.mark.parametrize(
    ("count", "scale"),
    [
        pytest.param(0, "none", id="none scored"),
        pytest.param(0, "released", id="none scored, published ones"),
        pytest.param(1, "none", id="one submission"),
        pytest.param(40, "released", id="many, published ones"),
    ],
)
def test_picture_and_page_are_drawn(count, scale, tmp_path):
    for number in range(max(count, 1)):
        submit(tmp_path / "s", f"s<{number}>", np.linspace(0.2, 0.8, 40))
    labels = write_labels(tmp_path / "l.csv") if count else None
    board = score_submissions(tmp_path / "s", labels, scale=scale, resamples=100)
    anchors = board.scale.anchors if board.scale else {}
    figure = draw_leaderboard(board)
    write_png(figure, tmp_path / "board.png")
    with Image.open(tmp_path / "board.png") as image:
        image.load()
        assert min(image.size) > 150
        assert len(image.convert("RGB").getcolors(1 << 24)) > 20
    words = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert words == [*board.ours.dropna(subset="log_loss")["name"][:30], *anchors]
    assert ("published" in figure.axes[0].get_xlabel()) == bool(anchors), "a colour is explained where it is used"
    page = leaderboard_page(board, figure)
    reader = Reader(page)
    assert len(reader.images) == 1 and not reader.loaded
    said = html.unescape(board.markdown()).replace("\\", "")
    words = set(re.sub(r"[#|]|[*]{2}|---", " ", said).split())
    assert words <= set(" ".join(reader.words).split()), "the page says what the Markdown says"


def test_odd_names_are_shown_and_not_obeyed(tmp_path, capsys):
    names = [r"$\frac{$", "<script>", "a|b", '=HYPERLINK("x")', "\x1b[2Jred", "![x](y"]
    for name in names:
        submit(tmp_path / "s", name, np.linspace(0.2, 0.8, 40))
    labels = write_labels(tmp_path / "labels<i>|.csv")
    stage.main(["--submissions", str(tmp_path / "s"), "--labels", str(labels), "--resamples", "100"])
    written = {path.suffix: path.read_bytes() for path in (tmp_path / "s").glob("leaderboard.*")}
    assert written.keys() == {".md", ".csv", ".png", ".html"}
    assert not any(b"\x1b" in written[suffix] for suffix in (".md", ".csv", ".html"))
    page = written[".md"].decode()
    assert capsys.readouterr().out.startswith(page)
    assert "<script>" not in page and "<i>" not in page and "](y" not in page
    rows = page[page.index("| submission") :].split("\n\n")[0].splitlines()
    assert len({len(re.split(r"(?<!\\)[|]", row)) for row in rows}) == 1
    assert '\'=HYPERLINK("x")' in set(pd.read_csv(tmp_path / "s/leaderboard.csv")["name"])
    reader = Reader(written[".html"].decode())
    assert not reader.loaded and all(name in reader.text for name in names if name.isprintable())


def test_an_installed_package_carries_the_published_figures(tmp_path):
    """As a wheel does: setuptools copies the modules and their data."""
    root = Path(__file__).parents[2]
    for name in ("pyproject.toml", "requirements.txt", "LICENSE", "README.md"):
        shutil.copy(root / name, tmp_path)
    modules = ["__init__.py", "evaluation/__init__.py", "evaluation/leaderboard.py", "evaluation/published.json"]
    for name in modules:
        (tmp_path / "src/multiattn" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / "src/multiattn" / name, tmp_path / "src/multiattn" / name)
    command = [sys.executable, "-c", "from setuptools import setup; setup()", "-q", "build_py", "--build-lib", "built"]
    subprocess.run(command, cwd=tmp_path, check=True)
    built = {path.relative_to(tmp_path / "built/multiattn").as_posix() for path in tmp_path.glob("built/**/*.*")}
    assert built == set(modules)

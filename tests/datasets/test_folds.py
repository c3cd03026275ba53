"""Folds: what must never span them, what is refused, and that they can be made again."""

import networkx
import numpy as np
import pandas as pd
import pytest
from made_trees import videos

from multiattn.datasets.folds import check_folds, group_videos, make_folds, read_folds, write_folds
from multiattn.runtime.files import read_json
from multiattn.tables import FOLDS


def pairs(count: int, **columns) -> pd.DataFrame:
    """`count` pairs of a real video and its fake."""
    rows = []
    for number in range(count):
        values = {name: value(number) for name, value in columns.items()}
        rows.append({"video_id": f"d/r{number:03d}", "label": 0, **values})
        rows.append({"video_id": f"d/f{number:03d}", "label": 1, "original": f"d/r{number:03d}", **values})
    return videos(*rows)


def random_videos(seed: int) -> pd.DataFrame:
    """Reals, fakes of reals present, absent or of another part, people in several clips, two data sets, all splits."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(240):
        dataset = "ab"[rng.integers(2)]
        label = int(rng.choice([-1, 0, 1], p=[0.05, 0.35, 0.6]))
        row = {"video_id": f"{dataset}/{number:03d}", "dataset": dataset, "label": label}
        row["split"] = str(rng.choice(["train", "train", "train", "val", "", "test"]))
        if rng.random() < 0.7:
            row["part"] = f"p{rng.integers(25)}"
        if label == 1 and rng.random() < 0.6:
            row["original"] = f"{dataset}/{int(rng.integers(300)):03d}"
        if rng.random() < 0.1:
            row["target_id"] = f"{rng.integers(60)}"
        if label == 1 and rng.random() < 0.1:
            row["source_id"] = f"{rng.integers(60)}"
        rows.append(row)
    return videos(*rows)


def links(row, *, with_part: bool) -> list[tuple]:
    """Keys of everything a video may not be parted from, independent of the code under test."""
    found = [("video", row.video_id)] + [("video", row.original)] * bool(row.original)
    found += [("person", row.dataset, name) for name in (row.target_id, row.source_id) if name]
    return found + [("part", row.dataset, row.part)] * bool(with_part and row.part)


def components(table: pd.DataFrame, *, with_part: bool) -> dict[str, str]:
    """video_id -> smallest video_id of its component, by networkx."""
    graph = networkx.Graph()
    for row in table.itertuples():
        for link in links(row, with_part=with_part):
            graph.add_edge(("row", row.video_id), link)
    result = {}
    for component in networkx.connected_components(graph):
        names = [node[1] for node in component if node[0] == "row"]
        result |= dict.fromkeys(names, min(names))
    return result


@pytest.mark.parametrize("grouping", ["part", "original"])
@pytest.mark.parametrize("seed", range(4))
def test_groups_are_the_connected_components_networkx_finds(seed, grouping):
    table = random_videos(seed)
    found = dict(zip(table["video_id"], group_videos(table, grouping), strict=True))
    assert found == components(table, with_part=grouping == "part")


@pytest.mark.parametrize(
    ("rows", "groups"),
    [
        pytest.param([], [], id="no videos"),
        pytest.param([{"video_id": "d/a"}], ["d/a"], id="one video"),
        pytest.param([{"video_id": "d/b"}, {"video_id": "d/a"}], ["d/b", "d/a"], id="two strangers"),
        pytest.param([{"video_id": "d/b", "original": "d/a"}, {"video_id": "d/a"}], ["d/a"] * 2, id="original present"),
        pytest.param(
            [{"video_id": "d/b", "original": "d/x"}, {"video_id": "d/c", "original": "d/x"}],
            ["d/b"] * 2,
            id="one absent original",
        ),
        pytest.param([{"video_id": "d/a", "part": "p"}, {"video_id": "d/b", "part": "p"}], ["d/a"] * 2, id="one part"),
        pytest.param(
            [{"video_id": "d/a", "part": "p"}, {"video_id": "e/b", "part": "p", "dataset": "e"}],
            ["d/a", "e/b"],
            id="one part's name in two data sets",
        ),
        pytest.param(
            [{"video_id": "d/a", "target_id": "1"}, {"video_id": "d/b", "target_id": "2", "source_id": "1"}],
            ["d/a"] * 2,
            id="target of one, source of the other",
        ),
        pytest.param(
            [
                {"video_id": "d/c", "part": "p"},
                {"video_id": "d/b", "part": "p", "original": "d/x"},
                {"video_id": "d/a", "original": "d/x", "part": "q"},
            ],
            ["d/a"] * 3,
            id="a chain over part and original",
        ),
    ],
)
def test_groups_by_hand(rows, groups):
    assert group_videos(videos(*rows), "part").tolist() == groups


def test_by_original_parts_may_be_cut_but_originals_and_people_not():
    table = pairs(4, part=lambda number: "one part", target_id=lambda number: f"{number // 2}")
    assert group_videos(table, "part").nunique() == 1
    assert group_videos(table, "original").nunique() == 2


@pytest.mark.parametrize("grouping", ["part", "original"])
@pytest.mark.parametrize("seed", range(4))
def test_nothing_that_belongs_together_spans_folds(seed, grouping):
    """Over random graphs: original, person and (by default) part stay in one fold; test and unlabelled stay out."""
    table = random_videos(seed).query("part == '' or part in ['p1', 'p2', 'p3', 'p4', 'p5', 'p6', 'p7']")
    if grouping == "part":  # random links join nearly everything; sparser ones leave groups to part
        table = table.assign(original="", target_id="", source_id="").reset_index(drop=True)
    folds = make_folds(table, num_folds=3, seed=seed, grouping=grouping)
    usable = table[(table["split"] != "test") & (table["label"] >= 0)]
    assert folds["video_id"].tolist() == sorted(usable["video_id"])
    assert sorted(folds["fold"].unique()) == [0, 1, 2]
    fold_of = folds.set_index("video_id")["fold"]
    folds_of_link: dict[tuple, set[int]] = {}
    for row in usable.itertuples():
        for link in links(row, with_part=grouping == "part"):
            folds_of_link.setdefault(link, set()).add(int(fold_of[row.video_id]))
    assert {link: found for link, found in folds_of_link.items() if len(found) > 1} == {}


def test_folds_are_balanced_when_groups_allow_it():
    folds = make_folds(pairs(20), num_folds=5, seed=7, grouping="part")
    counts = folds.groupby(["fold", "label"]).size().unstack()
    assert counts.to_numpy().tolist() == [[4, 4]] * 5


def test_the_same_seed_gives_the_same_folds_and_another_seed_others():
    table = pairs(30)
    first, again, other = (make_folds(table, num_folds=3, seed=seed, grouping="part") for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again)
    assert (first["fold"] != other["fold"]).any()


@pytest.mark.parametrize("grouping", ["part", "original"])
def test_the_order_of_the_rows_of_videos_csv_does_not_matter(grouping):
    table = pairs(30, part=lambda number: f"p{number % 7}")
    shuffled = table.sample(frac=1, random_state=3)
    pd.testing.assert_frame_equal(
        make_folds(table, num_folds=3, seed=7, grouping=grouping),
        make_folds(shuffled, num_folds=3, seed=7, grouping=grouping),
    )


@pytest.mark.parametrize(
    ("table", "num_folds", "grouping", "expected"),
    [
        pytest.param(videos(), 2, "part", "nothing to fold", id="no videos"),
        pytest.param(pairs(3).assign(split="test"), 2, "part", "nothing to fold", id="test videos only"),
        pytest.param(pairs(3).assign(label=-1), 2, "part", "nothing to fold", id="no labels"),
        pytest.param(pairs(3), 1, "part", "--num-folds: expected at least 2, found 1", id="one fold"),
        pytest.param(pairs(3), 0, "part", "--num-folds: expected at least 2, found 0", id="no folds"),
        pytest.param(pairs(3), 4, "part", r"found 3 and 3\. Pass --num-folds 3\.$", id="fewer groups than folds"),
        pytest.param(
            pairs(4, part=lambda n: f"p{n % 2}"),
            3,
            "part",
            r"found 2 and 2\. Pass --num-folds 2 or --group original\.$",
            id="fewer parts than folds",
        ),
        pytest.param(pairs(2), 3, "original", r"found 2 and 2\. Pass --num-folds 2\.$", id="nothing finer to try"),
        pytest.param(videos({"video_id": "d/a"}), 2, "part", r"found 1 and 0\. Index more", id="one video"),
        pytest.param(pairs(1), 2, "part", r"found 1 and 1\. Index more videos\.$", id="a real and its fake"),
        pytest.param(
            videos(*({"video_id": f"d/{number}"} for number in range(6))), 2, "part", "found 6 and 0", id="no fakes"
        ),
        pytest.param(
            videos(*({"video_id": f"d/{n}", "label": int(n > 0), "part": f"p{n}"} for n in range(6))),
            2,
            "part",
            r"found 1 and 5\. Index more videos\.$",
            id="one real for two folds",
        ),
    ],
)
def test_what_cannot_be_folded_is_refused(table, num_folds, grouping, expected):
    with pytest.raises(ValueError, match=expected):
        make_folds(table, num_folds=num_folds, seed=7, grouping=grouping)


def test_as_many_groups_as_folds_is_enough():
    folds = make_folds(pairs(3), num_folds=3, seed=7, grouping="part")
    assert folds["fold"].value_counts().to_dict() == {0: 2, 1: 2, 2: 2}


def test_the_test_split_is_never_in_a_fold():
    table = pairs(8)
    table.loc[:3, "split"] = "test"
    folds = make_folds(table, num_folds=2, seed=7, grouping="part")
    assert set(folds["video_id"]).isdisjoint(table["video_id"][:4])
    assert len(folds) == 12


@pytest.fixture
def sound():
    """A videos table and its folds."""
    table = pairs(8)
    return table, make_folds(table, num_folds=2, seed=7, grouping="part")


@pytest.mark.parametrize(
    ("column", "change", "expected"),
    [
        pytest.param("fold", lambda fold: 1 - fold, "leak: 1 group spans folds", id="moved to the other fold"),
        pytest.param("fold", lambda fold: -1, "leak: 1 group spans folds", id="taken out of validation"),
        pytest.param("label", lambda label: 1 - label, "1 label differs", id="another label"),
        pytest.param("split", lambda split: "test", "leak: 1 video is of a test split", id="became a test video"),
        pytest.param("group", lambda group: "alone", "leak: 2 videos share an original", id="a group of its own"),
    ],
)
def test_one_row_that_was_tampered_with_is_found_when_folds_are_read(column, change, expected, sound, tmp_path):
    table, folds = sound
    check_folds(folds, source="sound", videos=table)
    first = folds.loc[0, "video_id"]
    changed = table if column == "split" else folds
    changed.loc[changed["video_id"] == first, column] = change(changed.set_index("video_id").loc[first, column])
    if column == "group":
        folds.loc[0, "fold"] = 1 - folds.loc[0, "fold"]
    FOLDS.write(folds, tmp_path / "folds.csv")
    with pytest.raises(ValueError, match=expected) as caught:
        read_folds(tmp_path / "folds.csv", videos=table)
    assert str(tmp_path / "folds.csv") in str(caught.value)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param({0: 0, 1: 2}, "expected folds numbered 0, 1, 2", id="a gap in the numbers"),
        pytest.param({0: -1, 1: -1}, "expected folds numbered 0, 1, 2", id="no fold at all"),
    ],
)
def test_folds_that_are_not_numbered_in_order_are_refused(change, expected, sound):
    _, folds = sound
    with pytest.raises(ValueError, match=expected):
        check_folds(folds.replace({"fold": change}), source="folds")


def test_a_fold_of_one_class_is_refused(sound):
    _, folds = sound
    with pytest.raises(ValueError, match="fold 0 holds fake videos only"):
        check_folds(folds[(folds["fold"] != 0) | (folds["label"] == 1)], source="folds")


@pytest.mark.parametrize("link", ["original", "target_id"])
def test_what_a_video_shares_with_another_is_checked_against_the_videos_table(link, sound):
    """Folds made before the videos table said so: two videos share an absent original, or show one person."""
    table, folds = sound
    first = folds.loc[folds["fold"] == 0, "video_id"].iloc[0]
    second = folds.loc[folds["fold"] == 1, "video_id"].iloc[0]
    table.loc[table["video_id"].isin([first, second]), link] = "the same"
    with pytest.raises(ValueError, match="leak"):
        check_folds(folds, source="folds", videos=table)


def test_videos_outside_the_folds_do_not_matter(sound):
    table, folds = sound
    check_folds(folds, source="folds", videos=table.iloc[:0])
    more = videos({"video_id": "d/new", "label": 1, "original": "d/r000"})
    check_folds(folds, source="folds", videos=pd.concat([table, more], ignore_index=True))


def test_folds_and_their_recipe_come_back_as_written(sound, tmp_path):
    _, folds = sound
    described = write_folds(folds, tmp_path / "mine.csv", {"seed": 7})
    pd.testing.assert_frame_equal(read_folds(tmp_path / "mine.csv"), folds)
    assert read_json(tmp_path / "mine.json") == described
    assert described["recipe"] == {"seed": 7}
    assert described["folds"] == [
        {"fold": 0, "videos": 8, "fake": 4, "groups": 4, "real": 4},
        {"fold": 1, "videos": 8, "fake": 4, "groups": 4, "real": 4},
    ]
    assert (tmp_path / "mine.csv").read_text().splitlines()[0] == "video_id,label,group,fold,label_source"

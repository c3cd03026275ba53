"""FakeAVCeleb with lines of its metadata, whose header leaves the tenth column without a name."""

from pathlib import Path

import pandas as pd
import pytest
from made_trees import make_files, rows_by_id

from multiattn.datasets.fakeavceleb import METADATA, read_fakeavceleb
from multiattn.datasets.folds import group_videos
from multiattn.tables import VIDEOS

HEADER = "source,target1,target2,method,category,type,race,gender,path,\n"
FOLDER = "FakeAVCeleb/FakeVideo-RealAudio/Asian (East)/women/id00476"
LINES = f"""{HEADER}\
id00076,-,-,real,A,RealVideo-RealAudio,African,men,00109.mp4,FakeAVCeleb/RealVideo-RealAudio/African/men/id00076
id00076,-,-,rtvc,B,RealVideo-FakeAudio,African,men,00109_fake.mp4,FakeAVCeleb/RealVideo-FakeAudio/African/men/id00076
id00076,id00476,10,wav2lip,D,FakeVideo-FakeAudio,African,men,00109_10_id00476_wavtolip.mp4,FakeAVCeleb/FakeVideo-FakeAudio/African/men/id00076
id00076,id00476,10,faceswap-wav2lip,D,FakeVideo-FakeAudio,African,men,00109_10_id00476_wavtolip.mp4,FakeAVCeleb/FakeVideo-FakeAudio/African/men/id00076
id00476,id00076,-,fsgan,C,FakeVideo-RealAudio,Asian (East),women,00001_id00076.mp4,{FOLDER}
"""
REAL = "RealVideo-RealAudio/African/men/id00076/00109.mp4"
VOICE = "RealVideo-FakeAudio/African/men/id00076/00109_fake.mp4"
LIPS = "FakeVideo-FakeAudio/African/men/id00076/00109_10_id00476_wavtolip.mp4"
SWAP = "FakeVideo-RealAudio/Asian (East)/women/id00476/00001_id00076.mp4"


def make_tree(root: Path, *clips: str, lines: str = LINES) -> Path:
    make_files(root, *clips)
    (root / METADATA).write_text(lines)
    return root


def test_pictures_decide_the_label_and_the_person_to_be_seen_the_group(tmp_path):
    listing = read_fakeavceleb(make_tree(tmp_path, REAL, VOICE, LIPS, SWAP))
    rows = rows_by_id(listing, "path")
    found = {path: [row[name] for name in ("label", "method", "target_id", "source_id")] for path, row in rows.items()}
    assert found == {
        REAL: [0, "", "id00076", ""],
        VOICE: [0, "", "id00076", ""],
        LIPS: [1, "wav2lip", "id00076", ""],
        SWAP: [1, "fsgan", "id00476", ""],
    }
    assert rows[LIPS]["original"] == rows[REAL]["video_id"]
    assert rows[SWAP]["original"] == "fakeavceleb/RealVideo-RealAudio/Asian (East)/women/id00476/00001"
    groups = group_videos(VIDEOS.validate(pd.DataFrame(listing.rows), "listing"), "original")
    assert groups.nunique() == 2, "by the faces put on, both people would hang together"
    assert any("1 clip is listed again" in note for note in listing.notes)
    assert any("1 clip of RealVideo-FakeAudio is labelled real" in note for note in listing.notes)


def test_absent_and_unlisted_clips_are_counted_and_nine_columns_will_do(tmp_path):
    lines = "".join(f"{line.rpartition(',')[0]}\n" for line in LINES.splitlines())
    other = "RealVideo-RealAudio/African/men/id00001/00001.mp4"
    listing = read_fakeavceleb(make_tree(tmp_path, REAL, other, lines=lines))
    assert [row["path"] for row in listing.rows] == [REAL]
    assert (listing.absent, listing.unlisted) == (sorted([VOICE, LIPS, SWAP]), [other])


def test_a_root_above_a_nested_download_is_told_where_it_lies(tmp_path):
    inner = make_tree(tmp_path / "FakeAVCeleb_v1.2/FakeAVCeleb_v1.2", REAL)
    with pytest.raises(FileNotFoundError, match=f"Pass {inner} as --root"):
        read_fakeavceleb(tmp_path)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        pytest.param("", "found nothing", id="empty"),
        pytest.param("a,b\n", "expected the columns source", id="other columns"),
        pytest.param(f"{HEADER}id1,-,-,real,A,RealVideo,x,men,1.mp4,\n", ":2: expected a type", id="another type"),
        pytest.param(f"{HEADER}id1,-\n", ":2: expected a type", id="a line cut short"),
        pytest.param(f"{HEADER}{'x' * 140_000}\n", "expected a CSV in UTF-8", id="a cell too long"),
        pytest.param(LINES.replace("FakeAVCeleb/RealVideo-RealAudio", "F/FakeVideo-RealAudio"), ":2: .*folder below",
                     id="a folder of another type"),
    ],
)  # fmt: skip
def test_metadata_of_another_form_are_refused_with_their_path(lines, expected, tmp_path):
    with pytest.raises(ValueError, match=expected) as caught:
        read_fakeavceleb(make_tree(tmp_path, REAL, lines=lines))
    assert str(tmp_path / METADATA) in str(caught.value)

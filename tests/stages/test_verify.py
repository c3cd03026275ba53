"""`multiattn verify`: a file is held against the sample before it is uploaded."""

import pytest

from multiattn.__main__ import main

SAMPLE = "filename,label\na.mp4,0\nb.mp4,0\nc.mp4,0\n"


@pytest.mark.parametrize(
    ("rows", "code", "words"),
    [
        pytest.param(
            "a.mp4,0.25\nb.mp4,0.5\nc.mp4,0.5\n",
            0,
            "3 rows, as the sample has them; P(fake) from 0.25 to 0.5, 2 of them 0.5.",
            id="sound",
        ),
        pytest.param("a.mp4,0.5\nb.mp4,0.5\nc.mp4,0.5\n", 0, "All rows are alike", id="all alike"),
        pytest.param("a.mp4,0.5\nb.mp4,1\nc.mp4,0.2\n", 0, "clip them", id="certain"),
        pytest.param("b.mp4,0.5\na.mp4,0.5\nc.mp4,0.5\n", 2, "the sample's 3 rows in its order", id="another order"),
        pytest.param("a.mp4,0.5\nb.mp4,0.5\n", 2, "missing 'c.mp4', added none", id="a row missing"),
        pytest.param("a.mp4,0.5\nb.mp4,nan\nc.mp4,0.5\n", 2, "P(fake) in [0, 1]", id="no number"),
        pytest.param("a.mp4,0.5\nb.mp4,1.5\nc.mp4,0.5\n", 2, "P(fake) in [0, 1]", id="no probability"),
        pytest.param("", 2, "no rows", id="no rows"),
    ],
)
@pytest.mark.parametrize("named", ["folder", "file"])
def test_a_submission_is_held_against_the_sample(named, rows, code, words, tmp_path, capsys):
    (tmp_path / "sample.csv").write_text(SAMPLE)
    (tmp_path / "mine").mkdir()
    path = tmp_path / "mine" / "submission.csv"
    path.write_text(f"filename,label\n{rows}")
    submission = path if named == "file" else path.parent
    assert main(["verify", str(submission), "--sample-submission", str(tmp_path / "sample.csv")]) == code
    said = capsys.readouterr()
    assert words in (said.err if code else said.out) and str(path) in said.err + said.out


def test_without_a_sample_names_and_probabilities_are_checked(tmp_path, capsys):
    path = tmp_path / "submission.csv"
    path.write_text("filename,label\na.mp4,0.25\nb.mp4,0.5\n")
    assert main(["verify", str(path)]) == 0
    assert "submission.csv: 2 rows; P(fake) from 0.25 to 0.5." in capsys.readouterr().out
    path.write_text("filename,label\na.mp4,0.25\na.mp4,0.5\n")
    assert main(["verify", str(path)]) == 2


def test_what_is_not_there_is_named(tmp_path, capsys):
    (tmp_path / "sample.csv").write_text(SAMPLE)
    assert main(["verify", str(tmp_path / "none.csv"), "--sample-submission", str(tmp_path / "sample.csv")]) == 2
    assert "none.csv: no submission table here" in capsys.readouterr().err
    (tmp_path / "none.csv").write_text(SAMPLE)
    assert main(["verify", str(tmp_path / "none.csv"), "--sample-submission", str(tmp_path / "nope.csv")]) == 2
    assert "Pass the competition's sample_submission.csv" in capsys.readouterr().err

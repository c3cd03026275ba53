"""Journals: nothing whole is lost, nothing torn is read, nothing of other work is mixed in."""

import errno
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from multiattn.runtime.journal import CHUNK_BYTES, Journal

WORK = {"models": {"m/fold0": "abc"}, "crops": {"size": 64}, "precision": "fp32"}


@dataclass
class Finished:
    name: str
    values: list = field(default_factory=list)


RECORDS = [
    Finished("a/\u00e4 b", [[0.1 + 0.2, -1e-17, None]]),
    Finished('a/"quoted"\\', ["line\nbreak"]),
    Finished("c"),
]


def opened(path: Path, work: dict | None = None) -> Journal[Finished]:
    journal = Journal(path, Finished)
    journal.claim(work) if work is not None else journal.repair()
    return journal


def written(path: Path, work: dict | None = None) -> dict[str, int]:
    with opened(path, work) as journal:
        return {record.name: journal.append(record) for record in RECORDS}


@pytest.fixture(params=[None, WORK], ids=["without a header", "with a header"])
def work(request):
    return request.param


def test_a_journal_gives_back_what_was_written_bit_by_bit(tmp_path, work):
    path = tmp_path / "j.jsonl"
    places = written(path, work)
    for _ in range(2):
        journal = opened(path, work)
        assert list(journal.records()) == list(journal.records(skip_damaged=True)) == RECORDS
        assert journal.places() == places
        assert [journal.read_at(place) for place in places.values()] == RECORDS


def test_threads_that_read_an_open_journal_get_the_records_they_asked_for(tmp_path):
    interval = sys.getswitchinterval()
    with opened(tmp_path / "j.jsonl") as journal, ThreadPoolExecutor(4) as threads:
        places = [journal.append(Finished(f"{number}", [number] * 500)) for number in range(200)]
        sys.setswitchinterval(1e-6)
        try:
            found = list(threads.map(journal.read_at, places * 5))
        finally:
            sys.setswitchinterval(interval)
    assert [record.name for record in found] == [f"{number}" for number in range(200)] * 5


def test_a_journal_says_what_work_its_records_belong_to(tmp_path, work):
    path = tmp_path / "j.jsonl"
    assert Journal(path, Finished).work() == {}
    written(path, work)
    assert Journal(path, Finished).work() == (work or {})


def test_a_journal_that_is_not_there_is_empty(tmp_path):
    journal = opened(tmp_path / "none.jsonl")
    assert list(journal.records()) == [] and journal.places() == {} and not journal.path.exists()


def test_a_journal_cut_off_anywhere_keeps_its_whole_lines_and_can_be_continued(tmp_path, work):
    path = tmp_path / "j.jsonl"
    written(path, work)
    content = path.read_bytes()
    ends = [place + 1 for place, byte in enumerate(content) if byte == ord("\n")]
    for length in range(0, len(content) + 1, 7):
        path.write_bytes(content[:length])
        journal = opened(path, work)
        whole = max(0, sum(end <= length for end in ends) - (work is not None))
        assert list(journal.records()) == RECORDS[:whole]
        assert list(journal.places()) == [record.name for record in RECORDS[:whole]]
        assert path.is_file() == (whole > 0 or work is not None)
        with journal:
            journal.append(Finished("d"))
        assert list(opened(path, work).records()) == [*RECORDS[:whole], Finished("d")]


def test_places_are_right_after_a_part_of_a_line_that_could_not_be_cut_off(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "the disk is gone")

    with opened(tmp_path / "j.jsonl") as journal:
        file, torn = journal._file, {"write": lambda content: file.write(content[:9])}
        journal._file = SimpleNamespace(fileno=file.fileno, tell=file.tell, **torn)
        with monkeypatch.context() as patch, pytest.raises(OSError, match="the disk is gone"):
            patch.setattr(os, "ftruncate", fail)
            journal.append(RECORDS[0])
        journal._file = file
        journal.append(RECORDS[0])  # behind the part, so it is lost
        places = [journal.append(record) for record in RECORDS]
        assert [journal.read_at(place) for place in places] == RECORDS
    assert list(journal.records(skip_damaged=True)) == RECORDS


def test_an_unfinished_line_longer_than_a_chunk_is_cut_off(tmp_path):
    path = tmp_path / "j.jsonl"
    written(path)
    whole = path.read_bytes()
    path.write_bytes(whole + b"x" * (2 * CHUNK_BYTES + 1))
    opened(path)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("damage", [b"{}\n", b"\n", b'{"name":\n', b"\xff\xfe\n"], ids=repr)
def test_a_damaged_line_is_refused_with_its_number_or_left_out_with_a_warning(damage, tmp_path, caplog):
    path = tmp_path / "j.jsonl"
    written(path)
    path.write_bytes(path.read_bytes() + damage)
    journal = opened(path)
    for read in (journal.places, lambda: list(journal.records())):
        with pytest.raises(ValueError, match=r"j.jsonl: line 4 is damaged"):
            read()
    assert list(journal.records(skip_damaged=True)) == RECORDS
    assert "1 damaged line is left out" in caplog.text


@pytest.mark.parametrize("key", list(WORK))
def test_records_of_other_work_are_set_aside_whole(tmp_path, key, caplog):
    path = tmp_path / "j.jsonl"
    written(path, WORK)
    before = path.read_bytes()
    assert list(opened(path, {**WORK, key: "another"}).records()) == []
    assert key in caplog.text
    assert (tmp_path / "j.1.jsonl").read_bytes() == before
    assert list(opened(path, WORK).records()) == []
    assert (tmp_path / "j.2.jsonl").is_file(), "and a second one does not overwrite the first"
    assert (tmp_path / "j.1.jsonl").read_bytes() == before


def test_a_first_line_that_is_no_header_is_of_other_work(tmp_path):
    path = tmp_path / "j.jsonl"
    written(path)
    assert list(opened(path, WORK).records()) == []
    assert len((tmp_path / "j.1.jsonl").read_bytes().splitlines()) == len(RECORDS)

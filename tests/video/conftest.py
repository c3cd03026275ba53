"""Parts that several of these tests share."""

from collections.abc import Iterator

import pytest

from drawn_faces import SquareDetector
from multiattn.video.extraction import extract
from multiattn.video.extraction.isolation import end_processes


@pytest.fixture(autouse=True, scope="module")
def _leave_no_process() -> Iterator[None]:
    yield
    end_processes()


@pytest.fixture
def detector(monkeypatch) -> SquareDetector:
    """A detector of squares in place of the networks, in this process."""
    found = SquareDetector()
    monkeypatch.setattr(extract, "load_detector", lambda *_, **__: found)
    return found

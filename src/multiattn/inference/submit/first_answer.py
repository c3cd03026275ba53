"""A submission in the first second, before the libraries are imported that a better one needs."""

import csv
import io
from pathlib import Path

from multiattn.runtime.files import write_text
from multiattn.runtime.layout import SUBMISSION_FILE

PRIOR = 0.5


def write_first_answer(sample: Path, out: Path) -> None:
    """Answer each row of the sample with the prior 0.5, where no submission lies yet.

    Importing torch takes seconds; whoever is killed in them has a submission already. A sample that cannot be read or
    is none is left to the kernel, which says what is wrong with it.

    Args:
        sample: the competition's sample submission, `filename,label`.
        out: the submission folder.
    """
    path = out / SUBMISSION_FILE
    try:
        if path.exists():
            return
        with sample.open(newline="", encoding="utf-8") as file:
            names = [row["filename"] for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error, KeyError):
        return
    if not names or not all(names) or len(set(names)) < len(names):
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["filename", "label"])
    writer.writerows([name, PRIOR] for name in names)
    write_text(path, text.getvalue())

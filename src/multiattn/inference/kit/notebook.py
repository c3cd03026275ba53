"""Run the inference notebook headless, as Kaggle does."""

import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from multiattn.runtime.files import write_text

NOTEBOOK = Path(__file__).resolve().parents[4] / "notebooks" / "inference.ipynb"


def execute_notebook(out: Path, environment: dict[str, str], *, notebook: Path = NOTEBOOK) -> None:
    """Execute a notebook in a fresh process and save it as `out` with its outputs, also when a cell fails.

    `environment` are variables of its process, beside those of this process.

    Raises:
        FileNotFoundError: no such notebook.
        ValueError: a cell failed; says which error, and where the executed copy is.
    """
    if not notebook.is_file():
        raise FileNotFoundError(f"{notebook}: no such notebook. Run from a clone of the repository.")
    document = nbformat.read(notebook, as_version=4)
    client = NotebookClient(
        document,
        timeout=None,
        kernel_name="python3",
        resources={"metadata": {"path": str(notebook.parent)}},
        extra_arguments=["--log-level=ERROR"],  # Jupyter warns at each start that it listens on localhost
    )
    try:
        client.execute(env={**os.environ, **environment})
    except CellExecutionError as error:
        raise ValueError(
            f"{notebook}: a cell failed: {error.ename}: {error.evalue}. The executed copy is {out}."
        ) from error
    finally:
        write_text(out, nbformat.writes(document))

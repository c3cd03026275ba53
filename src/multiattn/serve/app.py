"""The application: routes of the API and of the page, in front of `jobs.py`."""

import contextlib
import json
import mimetypes
import os
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path
from typing import Annotated, Any

from anyio import to_thread
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi import Path as PathParameter
from pydantic import BaseModel

from multiattn.runtime.environment import package_version
from multiattn.runtime.files import FULL, require_plain_file
from multiattn.runtime.text_tables import printable
from multiattn.serve.guard import Guard
from multiattn.serve.jobs import DONE, FAILED, PROGRESS, STEPS, Job, Jobs, QueueFullError, State
from multiattn.serve.limits import Limits
from multiattn.serve.uploads import Disk, busy, declared_length, pieces, receive_file
from multiattn.serve.workers import PICTURES_FOLDER, REPORT_FILE, RESULT_FILE, Worker

PAGE = Path(__file__).parent / "page"
MAX_JSON_BYTES = 64 * 1024
FORM_BYTES = 16 * 1024
"""Bytes of a multipart body beside its file."""
REPORT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'none'; sandbox"
ERRORS = {
    400: "Not what is expected, or a Host header of elsewhere",
    401: "No token, or a wrong one",
    403: "A request from another site, or a path that is not below --root",
    404: "No such job, or no more",
    408: "The upload stalled, or nearly",
    409: "There is no answer yet, or there will be none",
    413: "Larger than the limit",
    415: "Neither multipart/form-data nor application/json",
    422: "Not as described here",
    503: "The queue or the disk is full; Retry-After says when to come again",
}
JobId = Annotated[str, PathParameter(description="As `POST /v1/predict` gave it.")]
BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {"file": {"type": "string", "format": "binary", "description": "A video or picture."}},
                "required": ["file"],
            }
        },
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {"path": {"type": "string", "description": "A file on the server, below --root."}},
                "required": ["path"],
            }
        },
    },
}


class Problem(BaseModel):
    """Words for what went wrong."""

    detail: str | list[dict[str, Any]]


class JobStatus(BaseModel):
    """Where a file stands."""

    id: str
    file: str
    """As it was named."""
    state: State
    step: str
    """In words."""
    progress: float
    """Share of the work that is done, about, in [0, 1]."""
    position: int
    """Its place among the files that wait, from 1; 0 where it does not wait."""
    seconds: float
    """Time that it was examined, so far or in all."""
    error: str
    """Words for why there is no answer; empty otherwise."""


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Answers that a route may give beside its own."""
    return {status: {"model": Problem, "description": ERRORS[status]} for status in (400, 401, *statuses)}


def create_app(
    limits: Limits,
    folder: Path,
    first: Worker,
    make_worker: Callable[[], Worker],
    *,
    model: dict[str, Any],
    host: str = "127.0.0.1",
    token: str = "",
    names: Collection[str] = (),
    root: Path | None = None,
) -> FastAPI:
    """The application, which begins its work with its lifespan and ends it there, `folder` empty again.

    Args:
        folder, first, make_worker: as of `Jobs`.
        model: what `/v1/model` says of the detector.
        host, token, names: as of `Guard`.
        root: files below it may be named by their path; None: none.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.jobs, app.state.disk = Jobs(folder, limits, first, make_worker), Disk(folder)
        yield
        await to_thread.run_sync(app.state.jobs.close)

    app = FastAPI(
        title="multiattn",
        version=package_version(),
        description="P(fake) of videos and pictures. No answer ever says that a file is authentic.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's page loads a CDN; ours is /docs
        redoc_url=None,
    )
    app.add_middleware(Guard, host=host, token=token, names=names)
    _add_page(app)
    _add_jobs(app, limits, root)
    _add_answers(app)

    @app.get("/health", summary="The server runs", responses=errors())
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/model", summary="Models, what they know, and the limits", responses=errors())
    def describe() -> dict[str, Any]:
        return {"version": package_version(), **model, "limits": vars(limits), "takes_paths": root is not None}

    return app


def _add_page(app: FastAPI) -> None:
    def file_of(name: str) -> Callable[[], Response]:
        kind, content = mimetypes.guess_type(name)[0], (PAGE / name).read_bytes()
        return lambda: Response(content, media_type=kind)

    for path, name in {"/": "page.html", "/docs": "docs.html"}.items():
        app.get(path, include_in_schema=False)(file_of(name))
    for name in ("page.css", "page.js", "docs.js"):
        app.get(f"/{name}", include_in_schema=False)(file_of(name))


def _add_jobs(app: FastAPI, limits: Limits, root: Path | None) -> None:
    @app.post(
        "/v1/predict",
        status_code=202,
        summary="Examine a video or picture",
        responses=errors(403, 404, 408, 413, 415, 503),
        openapi_extra={"requestBody": BODY},
    )
    async def predict(request: Request, response: Response) -> JobStatus:
        """Send the file as the field `file` of a form, or the path of one below the server's --root as JSON."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        try:
            with app.state.jobs.place():
                if kind == "multipart/form-data":
                    job = await _upload(app, request, limits)
                elif kind == "application/json":
                    job = await _local_file(app, request, root)
                else:
                    raise HTTPException(415, f"Expected multipart/form-data or application/json, found {kind!r}.")
        except QueueFullError:
            raise busy(f"{limits.queue} files wait already.") from None
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise busy("The server's disk is full.") from error
        response.headers["Location"] = f"/v1/jobs/{job.id}"
        return _status(app, job)

    @app.get("/v1/jobs/{job}", summary="Where a file stands", responses=errors(404))
    def status(job: JobId) -> JobStatus:
        return _status(app, _found(app, job))

    @app.delete("/v1/jobs/{job}", status_code=204, summary="Cancel, and forget the answer", responses=errors(403, 404))
    def cancel(job: JobId) -> Response:
        app.state.jobs.cancel(_found(app, job))
        return Response(status_code=204)


def _add_answers(app: FastAPI) -> None:
    def read(job: str, name: str, kind: str, **headers: str) -> Response:
        it = _found(app, job)
        if it.state != DONE:
            raise HTTPException(409, it.error or f"There is no answer yet: {it.state}.")
        try:
            return Response((it.clip.folder / name).read_bytes(), media_type=kind, headers=headers)
        except FileNotFoundError:  # no such picture, or it expired just now
            raise HTTPException(404, "There is no such file, or no more.") from None

    @app.get("/v1/jobs/{job}/result", summary="The answer, as JSON", responses=errors(404, 409))
    def result(job: JobId) -> dict[str, Any]:
        """All that `multiattn score --json` writes, and a record: digests of file and models, version, date, and what
        was not examined."""
        return read(job, RESULT_FILE, "application/json")

    @app.get(
        "/v1/jobs/{job}/report",
        summary="The answer, as one HTML page to keep",
        response_class=Response,
        responses={200: {"content": {"text/html": {}}}, **errors(404, 409)},
    )
    def report(job: JobId) -> Response:
        return read(job, REPORT_FILE, "text/html; charset=utf-8", **{"Content-Security-Policy": REPORT_POLICY})

    @app.get(
        "/v1/jobs/{job}/pictures/{name}",
        summary="A picture that the answer names",
        response_class=Response,
        responses={200: {"content": {"image/jpeg": {}}}, **errors(404, 409)},
    )
    def picture(job: JobId, name: Annotated[str, PathParameter(pattern=r"^[a-z]+(_[0-9]+)+\.jpg$")]) -> Response:
        return read(job, f"{PICTURES_FOLDER}/{name}", "image/jpeg")


def _found(app: FastAPI, job: str) -> Job:
    if (it := app.state.jobs.find(job)) is None:
        raise HTTPException(404, "There is no such job, or no more.")
    return it


def _status(app: FastAPI, job: Job) -> JobStatus:
    step = job.step
    return JobStatus(
        id=job.id,
        file=printable(job.clip.name),
        state=job.state,
        step=job.state if job.state == FAILED else STEPS[step],
        progress=PROGRESS[step],
        position=app.state.jobs.position(job),
        seconds=job.seconds,
        error=job.error,
    )


async def _upload(app: FastAPI, request: Request, limits: Limits) -> Job:
    jobs: Jobs = app.state.jobs
    most = limits.max_upload_bytes + FORM_BYTES
    folder = None
    try:
        with app.state.disk.promised(declared_length(request, most)):
            folder = jobs.new_folder()
            path, name = await receive_file(request, folder, most)
        return jobs.add(path, name, folder, is_upload=True)
    except BaseException:  # the end of the server too
        if folder is not None:
            jobs.remove(folder)
        raise


async def _local_file(app: FastAPI, request: Request, root: Path | None) -> Job:
    """The job of a file below the root, wherever links lead."""
    declared_length(request, MAX_JSON_BYTES)
    content = b"".join([piece async for piece in pieces(request, MAX_JSON_BYTES)])
    try:
        path = json.loads(content)["path"]
        os.fsencode(path)
        named = Path(path)
    except (ValueError, TypeError, KeyError, RecursionError):
        raise HTTPException(400, 'Expected {"path": "a file below --root"}.') from None
    if root is None:
        raise HTTPException(403, "The server was started without --root: it opens no file by its path. Upload it.")
    try:
        real = (root / named).resolve()
        if root.resolve() not in real.parents:
            raise HTTPException(403, "This path does not lie below the server's --root.")
        require_plain_file(real)
    except (OSError, ValueError, RuntimeError):  # as of a name with a NUL, or of links in a circle
        raise HTTPException(404, "There is no such file below the server's --root.") from None
    return app.state.jobs.add(real, printable(str(named)), app.state.jobs.new_folder(), is_upload=False)

"""A page and a JSON API on this machine: drop a video or picture, read the answer, keep its report.

    multiattn serve
    multiattn serve --runs runs/dfdc_b4 --port 8000 --root /data/clips

Nothing leaves the machine. Other machines reach it with --host only, and need the token that is printed then.
"""

import os
import secrets
import signal
import socket
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from multiattn.command_line import (
    DetectorWeights,
    Device,
    Inline,
    PredictPrecision,
    RuleTta,
    RuntimeName,
    Scoring,
    parse,
    results,
)
from multiattn.config.settings import require
from multiattn.runtime.devices import runtime_precision
from multiattn.runtime.environment import require_packages
from multiattn.runtime.layout import DEFAULT_RUN, fold_folders, named_run, packaged_run
from multiattn.runtime.signals import listening
from multiattn.serve.limits import Limits

TOKEN_VARIABLE = "MULTIATTN_TOKEN"
MIN_TOKEN = 12
EVERY_ADDRESS = ("0.0.0.0", "::")
STOP_SECONDS = 5
"""Time for answers under way when the server is asked to end."""
PACKAGES = ("fastapi", "uvicorn", "python_multipart")


@dataclass(frozen=True, kw_only=True)
class Options:
    runs: tuple[Path, ...] = ()
    """runs/<experiment>, or several, or single folds: fewer models are faster; or a packaged run by its name (default:
    dfdc_lite)."""
    port: int = 8000
    """0 takes one that is free."""
    host: str = "127.0.0.1"
    """The address to listen at; 0.0.0.0 is every one of this machine, and asks for a token."""
    token: str | None = None
    """A word that whoever asks must know, 12 ASCII letters at least (default: MULTIATTN_TOKEN; else none for this
    machine alone, and one that is made and printed for others)."""
    allow_host: tuple[str, ...] = ()
    """Further names of this machine, where a proxy or a name server calls it so."""
    root: Path | None = None
    """A folder whose files the API may be asked about by their path."""
    scoring: Scoring = None
    tta: RuleTta = None
    weights: DetectorWeights = None
    device: Device = "auto"
    precision: PredictPrecision = "auto"
    runtime: RuntimeName = "torch"
    limits: Inline[Limits] = field(default_factory=Limits)

    def __post_init__(self) -> None:
        runtime_precision(self.runtime, self.precision)
        require(0 <= self.port <= 65535, self, "port", "a port from 0 to 65535")


def main(argv: list[str]) -> None:
    options = parse(Options, argv, stage="serve", doc=__doc__)
    require_packages("serve", "serve", *PACKAGES)
    token = options.token if options.token is not None else os.environ.get(TOKEN_VARIABLE)
    if token is not None and len(token) < MIN_TOKEN:
        raise ValueError(
            f"--token: expected {MIN_TOKEN} letters at least, found {len(token)} (or in {TOKEN_VARIABLE})."
        )
    if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
        raise ValueError(
            f"--token: expected printable ASCII without spaces, as headers carry (or in {TOKEN_VARIABLE})."
        )
    if options.root is not None and not options.root.is_dir():
        raise FileNotFoundError(f"--root {options.root}: no such folder.")
    runs = tuple(map(named_run, options.runs)) or (packaged_run(),)
    for run in runs:
        fold_folders(run)  # or an error, before the networks' process is started
    with _listen(options.host, options.port) as listener:
        from multiattn.serve.guard import is_loopback
        from multiattn.serve.workers import DetectorOptions, ExaminerProcess

        if not options.runs:
            results(f"no --runs: by the packaged run {DEFAULT_RUN}")
        detector = DetectorOptions(
            runs=tuple(run.absolute() for run in runs),
            scoring=options.scoring,
            tta=options.tta,
            weights=options.weights,
            device=options.device,
            precision=options.precision,
            runtime=options.runtime,
        )
        first = ExaminerProcess(detector)
        results(*first.model["notes"])
        if token is None:
            token = "" if is_loopback(options.host) else secrets.token_urlsafe(24)
        _serve(options, listener, detector, first, token)


def _listen(host: str, port: int) -> socket.socket:
    try:
        (family, *_, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return socket.create_server(address[:2], family=family, backlog=128)
    except OSError as error:
        raise ValueError(
            f"--host {host} --port {port}: cannot be listened at ({error.strerror or error}). Stop what listens there, "
            "or take another: --port 0 finds one that is free."
        ) from error


def _serve(options: Options, listener: socket.socket, detector, first, token: str) -> None:
    """Serve until a signal asks to end; `first` is a worker of the detector's options."""
    import uvicorn

    from multiattn.serve.app import create_app
    from multiattn.serve.folders import server_folder
    from multiattn.serve.workers import ExaminerProcess

    host = socket.gethostname() if options.host in EVERY_ADDRESS else options.host
    host = f"[{host}]" if ":" in host else host
    address = f"http://{host}:{listener.getsockname()[1]}/"
    with listening(signal.SIGINT), server_folder() as folder:
        app = create_app(
            options.limits,
            folder,
            first,
            lambda: ExaminerProcess(detector),
            model=first.model,
            host=options.host,
            token=token,
            names=options.allow_host,
            root=options.root,
        )
        how = {"log_config": None, "access_log": False, "server_header": False, "proxy_headers": False}
        server = uvicorn.Server(uvicorn.Config(app, ws="none", timeout_graceful_shutdown=STOP_SECONDS, **how))
        results(f"open {address}{f'?token={quote(token, safe=str())}' if token else ''}    (Ctrl-C ends it)")
        server.run(sockets=[listener])
    results("ended; uploads and answers are removed")

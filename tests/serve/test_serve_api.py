"""The protocol of `multiattn serve`, with a worker that examines nothing: limits, tokens, Host and Origin, names, the
queue, cancelling, expiry. Whatever happens ends in an answer or a refusal, and leaves nothing behind."""

import errno
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import httpx
import pytest
from fastapi.testclient import TestClient
from stand_in import MODEL, StandIn
from starlette.responses import PlainTextResponse

from multiattn.serve import uploads
from multiattn.serve.app import create_app
from multiattn.serve.guard import Guard
from multiattn.serve.limits import Limits

HERE = "http://127.0.0.1:8000"
TOKEN = "correct-horse-battery"


@contextmanager
def served(folder: Path, worker: StandIn | None = None, **options) -> Iterator[TestClient]:
    """A client of an application in a folder, which must be empty at the end; options are of `Limits` and the app."""
    folder.mkdir(exist_ok=True)
    of_app = {name: options.pop(name) for name in ("host", "token", "names", "root") if name in options}
    worker = worker or StandIn()
    app = create_app(Limits(**options), folder, worker, StandIn, model=MODEL, **of_app)
    with TestClient(app, base_url=HERE, follow_redirects=False) as client:
        yield client
    assert list(folder.iterdir()) == [], "nothing is left behind"


@pytest.fixture
def place(tmp_path) -> Path:
    return tmp_path / "jobs"


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Iterator[tuple[TestClient, StandIn]]:
    """An application with the usual limits, for tests that need no other."""
    worker = StandIn()
    with served(tmp_path_factory.mktemp("plain"), worker) as client:
        yield client, worker


def send(client: httpx.Client, name: str = "clip.mp4", content: bytes = b"film", **how) -> httpx.Response:
    return client.post("/v1/predict", files={"file": (name, content)}, **how)


def wait_for(client: httpx.Client, job: str, ready: Callable[[dict], bool] | None = None) -> dict:
    deadline = time.monotonic() + 10
    while True:
        status = client.get(f"/v1/jobs/{job}").json()
        if ready(status) if ready else status["state"] in ("done", "failed"):
            return status
        assert time.monotonic() < deadline, status
        time.sleep(0.005)


def test_a_file_is_taken_examined_and_answered_with_report_and_pictures(place):
    worker = StandIn()
    worker.free.clear()
    with served(place, worker) as client:
        taken = send(client)
        assert taken.status_code == 202
        job = taken.json()["id"]
        assert taken.headers["location"] == f"/v1/jobs/{job}"
        status = wait_for(client, job, lambda it: it["state"] == "working")
        assert (status["position"], status["step"]) == (0, "reading and finding faces")
        assert 0 < status["progress"] < 1
        assert client.get(f"/v1/jobs/{job}/result").status_code == 409
        second = send(client, "second.png").json()
        assert (second["state"], second["position"]) == ("waiting", 1)
        worker.free.set()
        assert wait_for(client, job)["progress"] == 1
        result = client.get(f"/v1/jobs/{job}/result").json()
        assert result["files"][0]["in_words"]["answer"] in MODEL["answers"]
        report = client.get(f"/v1/jobs/{job}/report")
        assert report.headers["content-type"].startswith("text/html")
        assert "sandbox" in report.headers["content-security-policy"]
        file = result["pictures"]["deciding"][0]["file"]
        assert client.get(f"/v1/jobs/{job}/pictures/{file}").headers["content-type"] == "image/jpeg"
        wait_for(client, second["id"])
        (clip, content), (picture, _) = worker.seen
        assert content == b"film" and not clip.path.exists(), "an upload goes when it has been examined"
        assert (clip.path.suffix, picture.path.suffix) == (".mp4", ".png"), "by which pictures are told from videos"


def test_what_fails_says_why_and_costs_that_file_only(place):
    with served(place) as client:
        failed = wait_for(client, send(client, "broken.mp4").json()["id"])
        assert failed["state"] == "failed" and "SIGSEGV" in failed["error"]
        refused = client.get(f"/v1/jobs/{failed['id']}/result")
        assert (refused.status_code, refused.json()["detail"]) == (409, failed["error"])
        assert wait_for(client, send(client).json()["id"])["state"] == "done"


@pytest.mark.parametrize(
    ("name", "shown", "suffix"),
    [
        pytest.param("../../../etc/passwd", "passwd", "", id="a way up"),
        pytest.param("..\\..\\x.MP4", "x.MP4", ".mp4", id="a way up on Windows"),
        pytest.param("/etc/cron.d/x.mov", "x.mov", ".mov", id="an absolute path"),
        pytest.param("<img src=x onerror=alert(1)>.mp4", "<img src=x onerror=alert(1)>.mp4", ".mp4", id="a tag"),
        pytest.param("a\x1b[31m\u202eb.mp4", r"a\x1b[31m\u202eb.mp4", ".mp4", id="control characters"),
        pytest.param("$(reboot).;rm", "$(reboot).;rm", "", id="a command"),
        pytest.param("x" * 900 + ".webm", "x" * 180 + "…" + "x" * 14 + ".webm", ".webm", id="too long"),
        pytest.param("..", "..", "", id="dots"),
    ],
)
def test_a_name_is_shown_and_becomes_no_path(plain, name, shown, suffix):
    client, worker = plain
    escaped = name.replace("\\", "\\\\")
    head = f'Content-Disposition: form-data; name="file"; filename="{escaped}"'
    form = f"--x\r\n{head}\r\n\r\nfilm\r\n--x--\r\n"
    taken = client.post(
        "/v1/predict", content=form.encode(), headers={"content-type": "multipart/form-data; boundary=x"}
    )
    assert taken.status_code == 202, taken.text
    job = taken.json()
    assert job["file"] == shown
    wait_for(client, job["id"])
    clip, content = worker.seen[-1]
    assert content == b"film"
    assert (clip.path.parent.name, clip.path.name) == (job["id"], f"clip{suffix}")


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        pytest.param("text/plain", b'{"path": "x"}', 415, id="a form of another site needs no leave for text"),
        pytest.param(None, b"", 415, id="nothing"),
        pytest.param("multipart/form-data", b"x", 400, id="no boundary"),
        pytest.param("multipart/form-data; boundary=x", b"", 400, id="an empty form"),
        pytest.param("multipart/form-data; boundary=x", b"nonsense", 400, id="no form"),
        pytest.param(
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nx',
            400, id="a cut-off form",
        ),
        pytest.param(
            "multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n--x--\r\n',
            400, id="no file",
        ),
        pytest.param(
            "multipart/form-data; boundary=x",
            2 * b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nx\r\n' + b"--x--\r\n",
            400, id="two files",
        ),
        pytest.param("application/json", b"[]", 400, id="no object"),
        pytest.param("application/json", b'{"path": 3}', 400, id="a number"),
        pytest.param("application/json", b'{"path": "\\ud800"}', 400, id="no text"),
        pytest.param("application/json", b"[" * 60_000, 400, id="deep"),
        pytest.param("application/json", b" " * 70_000, 413, id="large"),
        pytest.param("application/json", b'{"path": "clip.mp4"}', 403, id="no root"),
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused(plain, kind, body, status):
    client, worker = plain
    before = len(worker.seen)
    refused = client.post("/v1/predict", content=body, headers={"content-type": kind} if kind else {})
    assert (refused.status_code, bool(refused.json()["detail"]), len(worker.seen)) == (status, True, before)


def test_limits_hold_and_whoever_sends_too_much_is_told(place):
    worker = StandIn()
    worker.free.clear()
    with served(place, worker, max_upload_mb=0.1, queue=2) as client:
        assert send(client, content=b"x" * 200_000).status_code == 413, "by its header"
        whole = httpx.Request("POST", f"{HERE}/v1/predict", files={"file": ("a.mp4", b"x" * 200_000)})
        pieces = iter([whole.read()[start : start + 50_000] for start in range(0, 200_000, 50_000)])
        kind = {"content-type": whole.headers["content-type"]}
        assert client.post("/v1/predict", content=pieces, headers=kind).status_code == 413, "without one"
        first = send(client).json()["id"]
        wait_for(client, first, lambda it: it["state"] == "working")
        others = [send(client) for _ in range(4)]
        assert [it.status_code for it in others] == [202, 202, 503, 503]
        assert int(others[-1].headers["retry-after"]) > 0
        worker.free.set()


class Odd(StandIn):
    """Raises for its first file what no library should."""

    def examine(self, clip, seconds):
        if not self.seen:
            self.seen.append((clip, b""))
            raise LookupError("odd")
        super().examine(clip, seconds)


def test_whatever_a_library_raises_the_next_file_is_examined(place):
    with served(place, Odd()) as client:
        failed = wait_for(client, send(client).json()["id"])
        assert failed["state"] == "failed" and "LookupError" in failed["error"]
        assert wait_for(client, send(client).json()["id"])["state"] == "done"


def test_a_file_that_takes_too_long_costs_itself_only(place):
    worker = StandIn()
    worker.free.clear()
    with served(place, worker, job_seconds=0.05) as client:
        late = wait_for(client, send(client).json()["id"])
        assert late["state"] == "failed" and "longer than 0.05 s" in late["error"]
        worker.free.set()
        assert wait_for(client, send(client).json()["id"])["state"] == "done"


def test_an_upload_of_a_few_bytes_a_second_gives_its_place_back(place, monkeypatch):
    with served(place) as client:
        monkeypatch.setattr(uploads, "time", SimpleNamespace(monotonic=itertools.count(0, 100).__next__))
        slow = send(client)
        assert (slow.status_code, "2,000 bytes a second" in slow.json()["detail"]) == (408, True)


@pytest.mark.parametrize("when", ["before", "mid-upload"])
def test_a_full_disk_is_an_answer_and_leaves_nothing(place, when, monkeypatch):
    with served(place) as client:
        if when == "before":
            usage = type("usage", (), {"free": uploads.RESERVE_BYTES + 3})
            monkeypatch.setattr(uploads.shutil, "disk_usage", lambda _: usage)
        else:

            def full(*_):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            monkeypatch.setattr(uploads._FilePart, "on_part_data", full)
        refused = send(client)
        assert (refused.status_code, refused.json()["detail"]) == (503, "The server's disk is full.")
        assert "retry-after" in refused.headers and list(place.iterdir()) == []
        monkeypatch.undo()
        assert send(client).status_code == 202


def test_a_job_is_cancelled_whether_it_waits_works_or_is_done(place):
    worker = StandIn()
    worker.free.clear()
    with served(place, worker) as client:
        working = send(client).json()["id"]
        wait_for(client, working, lambda it: it["state"] == "working")
        waiting = send(client).json()["id"]
        assert client.delete(f"/v1/jobs/{waiting}").status_code == 204
        assert client.delete(f"/v1/jobs/{working}").status_code == 204
        assert worker.killed == 1
        done = send(client).json()["id"]
        assert wait_for(client, done)["state"] == "done", "by another worker"
        assert client.delete(f"/v1/jobs/{done}").status_code == 204
        assert [client.get(f"/v1/jobs/{job}").status_code for job in (working, waiting, done, "none")] == [404] * 4
        assert list(place.iterdir()) == []


def test_answers_are_kept_for_a_while_and_so_many(place):
    with served(place, keep_results=2, keep_minutes=60) as client:
        jobs = [send(client).json()["id"] for _ in range(3)]
        wait_for(client, jobs[-1])
        assert [client.get(f"/v1/jobs/{job}").status_code for job in jobs] == [404, 200, 200]
        for job in jobs[1:]:
            client.app.state.jobs.find(job).ended -= 3600
        assert [client.get(f"/v1/jobs/{job}/result").status_code for job in jobs] == [404] * 3
        assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    ("host", "asked", "status"),
    [
        pytest.param("127.0.0.1", "127.0.0.1:8000", 200, id="the address"),
        pytest.param("127.0.0.1", "localhost", 200, id="the name"),
        pytest.param("127.0.0.1", "[::1]:9", 200, id="of version six, by another port"),
        pytest.param("127.0.0.1", "evil.example", 400, id="a name that leads here"),
        pytest.param("127.0.0.1", "localhost.evil.example:8000", 400, id="a name that begins alike"),
        pytest.param("127.0.0.1", "192.168.0.7:8000", 400, id="another address of it"),
        pytest.param("127.0.0.1", "127.0.0.1@evil.example", 400, id="no host"),
        pytest.param("127.0.0.1", "", 400, id="empty"),
        pytest.param("0.0.0.0", "192.168.0.7:8000", 200, id="an address, for all"),
        pytest.param("0.0.0.0", "evil.example", 400, id="a name that leads here, for all"),
        pytest.param("0.0.0.0", "faces.example", 200, id="a name that was allowed"),
    ],
)
def test_the_host_header_must_name_this_machine(host, asked, status):
    guarded = Guard(PlainTextResponse("answer"), host=host, names=("faces.example",))
    assert TestClient(guarded).get("/", headers={"host": asked}).status_code == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param({}, 202, id="no browser"),
        pytest.param({"origin": HERE, "sec-fetch-site": "same-origin"}, 202, id="our page"),
        pytest.param({"origin": "https://evil.example"}, 403, id="another site"),
        pytest.param({"origin": "http://127.0.0.1:9000"}, 403, id="another port"),
        pytest.param({"origin": "null"}, 403, id="a sandboxed page"),
        pytest.param({"origin": "http://[::bad"}, 403, id="no origin"),
        pytest.param({"sec-fetch-site": "cross-site"}, 403, id="another site by the browser's word"),
        pytest.param({"sec-fetch-site": "same-site"}, 403, id="a site beside ours"),
    ],
)
def test_posts_and_deletes_of_other_sites_are_refused(plain, headers, status):
    client, _ = plain
    assert send(client, headers=headers).status_code == status
    assert client.delete("/v1/jobs/none", headers=headers).status_code == (404 if status == 202 else status)


def test_a_token_is_asked_for_and_a_cookie_takes_its_place(place):
    with served(place, host="0.0.0.0", token=TOKEN) as client:
        assert client.get("/health").status_code == 200
        wrong = [{}, {"authorization": "Bearer no"}, {"authorization": f"Basic {TOKEN}"}, {"cookie": "x=\x00"}]
        wrong.append({"cookie": f"multiattn_token_8000={TOKEN[:-1]}"})
        for path in ("/", "/v1/model", "/openapi.json", "/v1/jobs/x", "/page.js", "/docs"):
            assert [client.get(path, headers=it).status_code for it in wrong] == [401] * len(wrong), path
        assert send(client).status_code == 401
        assert client.get("/v1/model", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
        assert client.get("/?token=wrong-wrong-wrong").status_code == 401
        opened = client.get(f"/?token={TOKEN}")
        assert (opened.status_code, opened.headers["location"]) == (303, "/")
        assert {"httponly", "samesite=lax"} <= set(opened.headers["set-cookie"].lower().split("; "))
        assert client.get("/").status_code == 200 and send(client).status_code == 202, "with the cookie"


def test_a_token_of_any_printable_letters_is_known_again(place):
    token = """a+b/c=d&e#f%41;g"h\\'i"""
    with served(place, host="0.0.0.0", token=token) as client:
        assert client.get("/v1/model", headers={"authorization": f"Bearer {token}"}).status_code == 200
        assert client.get(f"/?token={quote(token, safe='')}").status_code == 303
        assert client.get("/v1/model").status_code == 200, "with the cookie"


def test_paths_are_taken_below_the_root_only(place, tmp_path):
    root = tmp_path / "clips"
    (root / "below").mkdir(parents=True)
    (root / "below" / "a.mp4").write_bytes(b"mine")
    (tmp_path / "secret.mp4").write_bytes(b"not mine")
    (root / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    (root / "circle").symlink_to(root / "circle")
    os.mkfifo(root / "pipe.mp4")
    worker = StandIn()
    with served(place, worker, root=root) as client:

        def ask(path) -> int:
            return client.post("/v1/predict", json={"path": str(path)}).status_code

        outside = ["../secret.mp4", tmp_path / "secret.mp4", "link.mp4", "/etc/passwd", "", "."]
        assert [ask(path) for path in outside] == [403] * 6
        assert [ask(path) for path in ("absent", "below", "pipe.mp4", "circle", "a\0b", "x" * 5000)] == [404] * 6
        assert [ask(path) for path in ("below/a.mp4", root / "below" / "a.mp4")] == [202, 202]
        wait_for(client, client.post("/v1/predict", json={"path": "below/a.mp4"}).json()["id"])
        assert {content for _, content in worker.seen} == {b"mine"}
    assert (root / "below" / "a.mp4").read_bytes() == b"mine", "what was not uploaded stays"


def test_pages_load_nothing_from_elsewhere_and_run_no_script_of_their_own(place):
    with served(place) as client:
        for path in ("/", "/docs"):
            page = client.get(path)
            policy = page.headers["content-security-policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy
            assert "<style" not in page.text and " style=" not in page.text and " onclick" not in page.text
        texts = [client.get(f"/{name}").text for name in ("", "docs", "page.js", "docs.js", "page.css")]
        links = [word for text in texts for word in text.split('"') if "://" in word]
        assert [link for link in links if link != "http://www.w3.org/2000/svg"] == []
        assert "innerHTML" not in "".join(texts)
        model = client.get("/v1/model").json()
        assert model["models"] == MODEL["models"] and model["limits"]["queue"] == Limits().queue
        assert json.loads(client.get("/openapi.json").text)["paths"]["/v1/predict"]["post"]["requestBody"]["required"]


@pytest.mark.parametrize("setting", ["max_upload_mb", "max_minutes", "jobs", "queue", "job_seconds", "keep_results"])
def test_a_limit_of_nothing_is_refused(setting):
    with pytest.raises(ValueError, match=f"Limits.{setting}: expected"):
        Limits(**{setting: 0})


@pytest.mark.parametrize("setting", ["max_upload_mb", "max_minutes", "job_seconds", "keep_minutes"])
def test_a_limit_that_no_clock_can_hold_is_refused(setting):
    with pytest.raises(ValueError, match=f"Limits.{setting}: expected"):
        Limits(**{setting: 1e10})


@pytest.fixture
def subnormal_numbers():
    """Numbers below the smallest normal one, which hypothesis draws: predictions of earlier tests flush them to 0."""
    flushed = "torch" in sys.modules and sys.float_info.min / 2 == 0.0
    if flushed:
        sys.modules["torch"].set_flush_denormal(False)
    yield
    if flushed:
        sys.modules["torch"].set_flush_denormal(True)


@pytest.mark.slow
@pytest.mark.usefixtures("subnormal_numbers")
def test_no_request_that_the_openapi_allows_or_forbids_ends_in_an_error_of_ours(place, tmp_path):
    """Requests that schemathesis makes up for each route; any answer is one that the API lists."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings

    (tmp_path / "a.mp4").write_bytes(b"mine")
    place.mkdir()
    app = create_app(Limits(queue=5), place, StandIn(), StandIn, model=MODEL, root=tmp_path, names=("testserver",))
    asked: dict[str, int] = {}

    async def without_lifespan(scope, receive, send) -> None:
        if scope["type"] == "http":
            await app(scope, receive, send)
        for word in ("startup", "shutdown") if scope["type"] == "lifespan" else ():
            await receive()
            await send({"type": f"lifespan.{word}.complete"})

    with TestClient(app, base_url=HERE):
        schema = schemathesis.openapi.from_asgi("/openapi.json", without_lifespan)
        for found in schema.get_all_operations():
            operation = found.ok()

            @settings(
                max_examples=4,
                deadline=None,
                database=None,
                derandomize=True,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy())
            def ask(case) -> None:
                asked[case.operation.label] = asked.get(case.operation.label, 0) + 1
                status = case.call().status_code
                listed = case.operation.definition.raw["responses"]
                assert str(status) in listed and (status < 500 or status == 503), (status, case.operation.label)

            ask()
    assert len(asked) == 8 and min(asked.values()) >= 1

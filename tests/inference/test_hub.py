"""Runs pushed to and pulled from a hub that stands in for Hugging Face's: its own client talks to it over HTTP."""

import base64
import hashlib
import http.server
import json
import re
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

from multiattn.__main__ import main
from multiattn.inference.hub import published_files, pull_run, push_files
from multiattn.runtime.files import changed_files, digest_list
from multiattn.runtime.layout import packaged_run

REPO = "someone/my-run"
WEIGHTS = "fold0/best.safetensors"


class Hub(http.server.ThreadingHTTPServer):
    """One model repository: branches of files, as the endpoints that the client calls show and change them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Endpoints)
        self.branches: dict[str, dict[str, bytes]] = {"main": {".gitattributes": b"*.safetensors filter=lfs\n"}}
        self.exists = self.private = False
        self.uploads: dict[str, bytes] = {}
        self.commits: list[dict] = []
        self.calls: Counter[str] = Counter()
        self.sizes: dict[str, int] = {}
        """Sizes that it claims, of other files than it has."""
        self.broken: set[str] = set()
        """Files that it fails to send."""

    def sha(self, branch: str) -> str:
        return hashlib.sha1(repr(sorted(self.branches[branch].items())).encode()).hexdigest()

    def files(self, revision: str) -> dict[str, bytes] | None:
        return {**{self.sha(name): files for name, files in self.branches.items()}, **self.branches}.get(revision)


class Endpoints(http.server.BaseHTTPRequestHandler):
    """https://huggingface.co/docs/hub/api, as far as huggingface_hub calls it to create, commit, list and fetch."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *words: object) -> None:
        pass

    def answer(self, code: int, content: object = None, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content or {}).encode()
        self.send_response(code)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_GET(self) -> None:
        hub, path = self.server, unquote(urlsplit(self.path).path)
        if not hub.exists:
            return self.answer(404, X_Error_Code="RepoNotFound")
        if found := re.fullmatch(rf"/api/models/{REPO}(?:/revision/(.+))?", path):
            branch = found[1] or "main"
            if hub.files(branch) is None:
                return self.answer(404, X_Error_Code="RevisionNotFound")
            sizes = {name: len(content) for name, content in hub.files(branch).items()} | hub.sizes
            siblings = [{"rfilename": name, "size": size} for name, size in sizes.items()]
            sha = hub.sha(branch) if branch in hub.branches else branch
            return self.answer(200, {"id": REPO, "sha": sha, "private": hub.private, "siblings": siblings})
        if found := re.fullmatch(rf"/{REPO}/resolve/([^/]+)/(.+)", path):
            hub.calls[f"{self.command} {found[2]}"] += 1
            if found[2] in hub.broken and self.command == "GET":
                return self.answer(409)
            content = hub.files(found[1])[found[2]]
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            return self.answer(200, content, ETag=etag, X_Repo_Commit=found[1])
        return self.answer(404, X_Error_Code="EntryNotFound")

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        self.server.uploads[self.path.rpartition("/")[2]] = self.body()
        self.answer(200)

    def do_POST(self) -> None:
        hub, path, body = self.server, unquote(urlsplit(self.path).path), self.body()
        if self.headers.get("Authorization") != "Bearer hf_secret":
            return self.answer(401, {"error": "Invalid username or password."})
        if path == "/api/repos/create":
            code, hub.exists = (409 if hub.exists else 200), True
            hub.private |= code == 200 and json.loads(body).get("visibility") == "private"
            return self.answer(code, {"url": f"https://huggingface.co/{REPO}", "id": REPO})
        if path == "/api/validate-yaml":
            assert json.loads(body)["content"].startswith("---\nlicense: ")
            return self.answer(200)
        if found := re.fullmatch(rf"/api/models/{REPO}/branch/(.+)", path):
            new = hub.branches.setdefault(found[1], dict(hub.branches["main"])) is not None
            return self.answer(200 if new else 409)
        if found := re.fullmatch(rf"/api/models/{REPO}/preupload/(.+)", path):
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith((".safetensors", ".parquet")) else "regular" for name in names}
            files = [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()]
            return self.answer(200, {"files": files})
        if path == f"/{REPO}.git/info/lfs/objects/batch":
            address = f"http://127.0.0.1:{hub.server_port}/upload"
            objects = [
                {**one, "actions": {"upload": {"href": f"{address}/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            return self.answer(200, {"transfer": "basic", "objects": objects})
        if found := re.fullmatch(rf"/api/models/{REPO}/commit/(.+)", path):
            return self.commit(found[1], [json.loads(line) for line in body.splitlines()])
        return self.answer(404)

    def commit(self, branch: str, lines: list[dict]) -> None:
        hub = self.server
        header, files = lines[0]["value"], dict(hub.branches[branch])
        if header["parentCommit"] != hub.sha(branch):
            self.answer(412, {"error": "A commit has happened since."})
            return
        for line in lines[1:]:
            name = line["value"]["path"]
            if line["key"] == "deletedFile":
                del files[name]
            elif line["key"] == "lfsFile":
                files[name] = hub.uploads[line["value"]["oid"]]
                assert hashlib.sha256(files[name]).hexdigest() == line["value"]["oid"]
            else:
                files[name] = base64.b64decode(line["value"]["content"])
        hub.branches[branch] = files
        hub.commits.append(header)
        oid = hub.sha(branch)
        self.answer(200, {"commitUrl": f"https://huggingface.co/{REPO}/commit/{oid}", "commitOid": oid})


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    constants = huggingface_hub.constants
    address = f"http://127.0.0.1:{server.server_port}"
    settings = {
        "ENDPOINT": address,
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": tmp_path / "c",
    }
    settings |= {"HUGGINGFACE_CO_URL_TEMPLATE": address + "/{repo_id}/resolve/{revision}/{filename}"}
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def small(tmp_path) -> Path:
    """A run of the packaged one's settings and rule, with a few numbers as its weights."""
    folder, source = tmp_path / "mine" / "small", packaged_run()
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors", "files.sha256", "folds.csv"))
    save_file({"weight": torch.arange(4.0)}, folder / "fold0" / "best.safetensors")
    environment = {"command": [f"{tmp_path}/bin/multiattn", "train", f"--faces={tmp_path}/faces", "--x", "a/b"]}
    (folder / "fold0" / "environment.json").write_text(json.dumps(environment))
    (folder / "fold0" / "resume.pt").write_bytes(b"\x80")
    (folder / "fold0" / "tensorboard").mkdir()
    (folder / "fold0" / "tensorboard" / "events.out.tfevents.1").touch()
    return folder


def test_what_is_published_holds_no_pickle_no_log_and_no_path_of_the_machine(small, tmp_path):
    files = published_files(small, REPO)
    assert set(files) == {
        *("files.sha256", "README.md", "card.md", "LICENSE.md", "scoring.json", "fold0/best.safetensors"),
        *("fold0/experiment.json", "fold0/faces.json", "fold0/environment.json"),
    }
    command = json.loads(files["fold0/environment.json"])["command"]
    assert command == ["multiattn", "train", "--faces=faces", "--x", "a/b"]
    assert not any(str(tmp_path).encode() in content for content in files.values() if isinstance(content, bytes))
    card, readme = (small / "card.md").read_text(), files["README.md"].decode()
    assert readme.endswith(card) and "license_link: LICENSE.md" in readme and "\nmodel_name: small\n" in readme
    (small / "card.md").write_text(f"{card}\n{tmp_path}/mine/x")
    with pytest.raises(ValueError, match=r"card.md: expected no folder of this machine in what is published"):
        published_files(small, REPO)
    (small / "card.md").unlink()
    with pytest.raises(FileNotFoundError, match=r"card.md: expected the run's card, found none. `multiattn card"):
        published_files(small, REPO)


def test_a_dry_run_lists_files_with_their_sizes_and_asks_no_hub(small, hub, capsys):
    assert main(["push", str(small), REPO, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^fold0/best.safetensors +\d+$", said, re.MULTILINE) and "nothing was sent" in said
    assert not hub.exists


def test_a_run_goes_to_the_hub_by_one_commit_and_comes_back_byte_for_byte(small, hub, tmp_path, capsys):
    assert main(["push", str(small), REPO, "--private"]) == 0 and hub.private
    assert len(hub.commits) == 1 and len(hub.uploads) == 1
    assert main(["pull", REPO, "--runs", str(tmp_path / "runs")]) == 0
    pulled = tmp_path / "runs" / "small"
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["small"]
    assert not changed_files(pulled / "files.sha256") and not list(pulled.rglob(".*"))
    weights = Path("fold0", "best.safetensors")
    assert (pulled / weights).read_bytes() == (small / weights).read_bytes()
    asked = hub.calls["GET fold0/best.safetensors"]
    assert pull_run(REPO, tmp_path / "runs", max_gb=1) == (pulled, False)
    assert hub.calls["GET fold0/best.safetensors"] == asked == 1
    (pulled / "scoring.json").write_text("{}")
    assert main(["pull", REPO, "--runs", str(tmp_path / "runs")]) == 2
    assert "expected no run of that name, or the same one" in capsys.readouterr().err
    assert (pulled / "scoring.json").read_text() == "{}"


def test_a_second_push_leaves_no_file_of_the_first_and_a_branch_is_by_itself(small, hub, tmp_path):
    push_files(published_files(small, REPO), REPO)
    first = dict(hub.branches["main"])
    (small / "scoring.json").unlink()
    push_files(published_files(small, REPO), REPO, revision="next")
    assert hub.branches["main"] == first and "scoring.json" not in hub.branches["next"]
    pulled, _ = pull_run(REPO, tmp_path / "runs", revision="next", max_gb=1)
    assert not (pulled / "scoring.json").exists() and not changed_files(pulled / "files.sha256")


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        pytest.param(
            lambda hub: None, {"private": True}, "expected a private repository, found a public one", id="public"
        ),
        pytest.param(lambda hub: hub.branches["main"].update(x=b""), {}, "empty repository or one that", id="others"),
    ],
)
def test_a_repository_that_is_not_ours_or_public_gets_nothing(change, options, message, small, hub):
    hub.exists = True
    change(hub)
    with pytest.raises(ValueError, match=f"{REPO}: .*{message}.*Nothing was sent"):
        push_files(published_files(small, REPO), REPO, revision="next", **options)
    assert not hub.commits and not hub.uploads and set(hub.branches) == {"main"}


def test_without_a_token_or_a_repository_the_answer_says_what_to_do(small, hub, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"someone/my-run: the hub answers: .*404.* HF_TOKEN"):
        pull_run(REPO, tmp_path / "runs", max_gb=1)
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(ValueError, match=r"the hub answers: .*401.*hf auth login"):
        push_files(published_files(small, REPO), REPO)


def test_a_pull_that_broke_goes_on_with_what_it_lacks(small, hub, tmp_path):
    push_files(published_files(small, REPO), REPO)
    hub.broken = {"scoring.json"}
    with pytest.raises(ValueError, match=r"the hub answers: .*409.*Run the same command again"):
        pull_run(REPO, tmp_path / "runs", max_gb=1)
    assert not (tmp_path / "runs" / "small").exists()
    hub.broken = set()
    pulled, is_new = pull_run(REPO, tmp_path / "runs", max_gb=1)
    assert is_new and not changed_files(pulled / "files.sha256") and hub.calls["GET fold0/best.safetensors"] == 1


def test_a_pull_that_broke_goes_on_with_a_later_commit_that_has_less(small, hub, tmp_path):
    push_files(published_files(small, REPO), REPO)
    old = tmp_path / "runs" / ".someone--my-run.pulling" / "fold7" / "inputs.json"
    old.parent.mkdir(parents=True)
    old.write_text("{}")
    pulled, is_new = pull_run(REPO, tmp_path / "runs", max_gb=1)
    assert is_new and not changed_files(pulled / "files.sha256") and not (pulled / "fold7").exists()


def test_a_name_of_other_letters_comes_back(small, hub, tmp_path):
    named = small.rename(small.with_name("größe"))
    push_files(published_files(named, REPO), REPO)
    assert pull_run(REPO, tmp_path / "runs", max_gb=1) == (tmp_path / "runs" / "größe", True)


def relisted(files: dict[str, bytes], **changes: bytes) -> None:
    """Change files as a hostile owner would: with digests that fit."""
    files.update(changes)
    held = {name: content for name, content in files.items() if name not in ("files.sha256", ".gitattributes")}
    files["files.sha256"] = digest_list({k: hashlib.sha256(v).hexdigest() for k, v in held.items()}).encode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda f: f.clear(), "found no files.sha256", id="empty"),
        pytest.param(lambda f: f.update({"card.md": b"x"}), "whose SHA-256 .* card.md: ", id="another digest"),
        pytest.param(lambda f: f.update({"more.md": b"x"}), "differ in more.md", id="not listed"),
        pytest.param(lambda f: f.pop("card.md"), "differ in card.md", id="listed and not there"),
        pytest.param(lambda f: relisted(f, **{"fold0/resume.pt": b"\x80"}), "no code, .*resume.pt", id="pickle"),
        pytest.param(lambda f: relisted(f, **{WEIGHTS: b"\x80\x04."}), "complete safetensors", id="pickle, renamed"),
        pytest.param(lambda f: relisted(f, **{"x.py": b""}), "no code, found 'x.py'", id="code"),
        pytest.param(lambda f: relisted(f, **{"../evil.md": b""}), "plain names .*evil.md", id="above"),
        pytest.param(lambda f: relisted(f, **{"a/../../evil.md": b""}), "plain names .*evil.md", id="above, inside"),
        pytest.param(lambda f: relisted(f, **{"/tmp/evil.md": b""}), "plain names .*evil.md", id="absolute"),
        pytest.param(lambda f: relisted(f, **{"C:\\evil.md": b""}), "plain names .*evil.md", id="Windows'"),
        pytest.param(lambda f: relisted(f, **{"fold0/.hidden.json": b""}), "plain names .*hidden", id="hidden"),
        pytest.param(lambda f: relisted(f, **{"README.md": b"---\nmodel_name: ../x\n---\n"}), "run's name", id="name"),
        pytest.param(lambda f: relisted(f, **{"README.md": b"no head"}), "run's name", id="no name"),
        pytest.param(lambda f: relisted(f, **{"README.md": b"\xff\xfemodel_name: \xff"}), "run's name", id="no text"),
        pytest.param(lambda f: relisted(f, **{"fold0/experiment.json": b"[]"}), "experiment.json", id="no run"),
    ],
)  # fmt: skip
def test_a_hostile_repository_is_refused_and_leaves_nothing(change, message, small, hub, tmp_path):
    push_files(published_files(small, REPO), REPO)
    change(hub.branches["main"])
    with pytest.raises(ValueError, match=rf"{REPO}: refused: .*{message}.* Nothing of it was kept"):
        pull_run(REPO, tmp_path / "runs", max_gb=1)
    assert not list((tmp_path / "runs").iterdir()) and not list(tmp_path.rglob("*evil*"))


def test_sizes_are_refused_before_anything_is_fetched_and_links_are_not_written_through(small, hub, tmp_path):
    push_files(published_files(small, REPO), REPO)
    hub.sizes = {"fold0/best.safetensors": 10**12}
    with pytest.raises(ValueError, match=r"at most --max-gb 1, found \d+ files of 1e\+03 GB"):
        pull_run(REPO, tmp_path / "runs", max_gb=1)
    hub.sizes = {"README.md": 10**9}
    with pytest.raises(ValueError, match=r"README.md: expected a text of at most 100 MB"):
        pull_run(REPO, tmp_path / "runs", max_gb=10)
    assert not hub.calls
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "runs" / ".someone--my-run.pulling").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="expected a folder to fetch into, found a link"):
        pull_run(REPO, tmp_path / "runs", max_gb=1)
    (tmp_path / "runs" / ".someone--my-run.pulling").unlink()
    (tmp_path / "runs" / "small").symlink_to(tmp_path / "elsewhere")
    hub.sizes = {}
    with pytest.raises(ValueError, match="small: expected no run of that name"):
        pull_run(REPO, tmp_path / "runs", max_gb=1)
    assert not list((tmp_path / "elsewhere").iterdir())
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["small"]


@pytest.mark.slow
def test_the_packaged_run_answers_alike_after_its_way_over_the_hub(hub, small_dataset, tmp_path):
    clip = next(path for path in sorted((small_dataset / "test_videos").glob("*.mp4")) if path.stat().st_size > 9000)
    assert main(["push", "dfdc_lite", REPO]) == main(["pull", REPO, "--runs", str(tmp_path / "runs")]) == 0
    answers = []
    for run in ("dfdc_lite", str(tmp_path / "runs" / "dfdc_lite")):
        path = tmp_path / f"{len(answers)}.json"
        assert main(["score", str(clip), "--runs", run, "--precision", "fp32", "--jobs", "1", "--json", str(path)]) == 0
        answers.append(json.loads(path.read_text()))
    assert answers[0] == answers[1]

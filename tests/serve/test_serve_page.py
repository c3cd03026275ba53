"""The page of `multiattn serve` in a real browser, over a worker that examines nothing: drop, progress, answer, error,
at two widths, and by the keyboard alone. Whatever the page logs as an error fails the test."""

import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from stand_in import MODEL, StandIn

from browser import opened_browser, wait_until
from multiattn.serve.app import create_app
from multiattn.serve.limits import Limits

WIDTHS = [pytest.param(1280, id="1280 px"), pytest.param(420, id="420 px")]
DROP = """([name, content]) => {
  const data = new DataTransfer();
  data.items.add(new File([content], name));
  const how = {dataTransfer: data, bubbles: true, cancelable: true};
  for (const kind of ['dragenter', 'dragover', 'drop'])
    document.getElementById('drop').dispatchEvent(new DragEvent(kind, how));
}"""


@pytest.fixture(scope="module")
def browser():
    with opened_browser() as it:
        yield it


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[tuple[str, list[StandIn]]]:
    """Its address, and its workers, the latest last."""
    workers = [StandIn()]

    def another() -> StandIn:
        workers.append(StandIn())
        return workers[-1]

    limits = Limits(max_upload_mb=1)
    app = create_app(limits, tmp_path_factory.mktemp("jobs"), workers[0], another, model=MODEL)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, ws="none", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/", workers
    server.should_exit = True
    thread.join()


@pytest.fixture
def page(browser, server):
    address, workers = server
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(20_000)
    faults, asked = [], []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    wait_until(page, "document.getElementById('model').textContent")
    yield page
    for worker in workers:
        worker.free.set()
    page.close()
    assert faults == []
    assert [url for url in asked if not url.startswith((address, "data:"))] == [], "nothing leaves the machine"


def fits(page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("width", WIDTHS)
def test_a_dropped_file_shows_its_progress_and_its_answer(page, server, width):
    _, workers = server
    page.set_viewport_size({"width": width, "height": 900})
    assert fits(page)
    workers[-1].free.clear()
    page.evaluate(DROP, ["<b>clip<b>.mp4", "film"])
    wait_until(page, "document.getElementById('step').textContent === 'Reading and finding faces'")
    assert page.inner_text("#working") == "<b>clip<b>.mp4" and fits(page)
    assert 0 < page.evaluate("document.getElementById('bar').position") < 1
    workers[-1].free.set()
    page.wait_for_selector("#answer:not([hidden])")
    text = page.inner_text("#answer")
    assert page.text_content("#verdict") == "looks manipulated", "as score says it"
    assert "<b>clip<b>.mp4" in text and page.locator("#answer .name b").count() == 0, "a name is text"
    for words in ("P(fake) 0.910", "P(fake) 0.610", "2 of 6 crops lie outside", "Sound was not examined."):
        assert words in text
    assert page.locator(".timeline polyline").count() == 2 and page.locator(".timeline circle").count() == 12
    wait_until(page, "[...document.images].every((it) => it.complete && it.naturalWidth)")
    assert page.locator(".strip img").count() == 3 and page.locator(".maps img").count() == 3
    assert page.evaluate("[...document.images].every((it) => it.alt)")
    assert page.evaluate("document.activeElement.id") == "verdict", "where a reader goes on"
    assert fits(page)
    page.reload()
    page.wait_for_selector("#answer:not([hidden])")
    with page.expect_download() as saved:
        page.click("text=Download report")
    assert saved.value.suggested_filename == "multiattn-abababab.html"
    page.click("text=Examine another file")
    assert page.is_visible("#drop")


def choose_by_keyboard(page):
    """Press Enter until the chooser opens, which Chromium does not do while the page is still being laid out."""
    choosers = []
    page.once("filechooser", lambda chooser: choosers.append(chooser))  # playwright marks the function
    for _ in range(20):
        page.keyboard.press("Enter")
        page.wait_for_timeout(500)
        if choosers:
            break
    choosers[0].set_files({"name": "wall.png", "mimeType": "image/png", "buffer": b"picture"})


def test_a_keyboard_is_enough(page, server):
    _, workers = server
    workers[-1].free.clear()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    choose_by_keyboard(page)
    wait_until(page, "document.getElementById('step').textContent === 'Reading and finding faces'")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "cancel"
    page.keyboard.press("Enter")
    page.wait_for_selector("#start:not([hidden])")
    assert page.evaluate("document.activeElement.id") == "file"
    choose_by_keyboard(page)
    page.wait_for_selector("#answer:not([hidden])")
    assert page.text_content("#verdict") == "cannot tell" and "No face was found." in page.inner_text("#answer")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.is_visible("#drop")


@pytest.mark.parametrize("width", WIDTHS)
def test_an_error_is_said_and_the_next_file_is_taken(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    page.evaluate(DROP, ["broken_<i>" + "x" * 150 + ".mp4", "film"])
    page.wait_for_selector("#trouble:not([hidden])")
    assert "SIGSEGV" in page.inner_text("[role=alert]") and page.locator("#trouble i").count() == 0
    assert fits(page) and page.is_visible("#drop")
    page.evaluate(DROP, ["large.mp4", "x" * 1_100_000])
    wait_until(page, "document.getElementById('trouble').textContent.includes('1 MB at most')")
    page.evaluate(DROP, ["clip.mp4", "film"])
    page.wait_for_selector("#answer:not([hidden])")
    assert not page.is_visible("#trouble")


def test_the_api_is_described_without_anything_from_elsewhere(page):
    page.click("text=The API behind this page")
    page.wait_for_selector("text=POST /v1/predict")
    assert page.locator("#routes section").count() == 8

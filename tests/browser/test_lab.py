"""A real browser on a real JupyterLab: the first notebook runs, and its slider moves a picture."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

from qatviz.__main__ import NOTEBOOKS, lab_command

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None and "QATVIZ_REQUIRE_BROWSER" not in os.environ,
        reason="no Chromium on this machine",
    ),
]


@pytest.fixture
def page():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser.new_page(viewport={"width": 1400, "height": 1000})
        browser.close()


@pytest.fixture
def lab(tmp_path):
    """JupyterLab on a copy of the notebooks, because it saves what it runs; gives its address."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    shutil.copy(NOTEBOOKS / "00_start_here.ipynb", folder)
    private = {
        f"JUPYTER_{name}_DIR": str(tmp_path / name) for name in ("CONFIG", "DATA", "RUNTIME")
    }
    environment = os.environ | private | {"QATVIZ_SCALE": "fast"}
    environment |= {"HOME": str(tmp_path)}
    command = [*lab_command(18888, folder), "--no-browser"]
    log = tmp_path / "lab.log"
    with log.open("w") as file:
        server = subprocess.Popen(command, cwd=folder, env=environment, stderr=file, stdout=file)
        try:
            yield _wait_for_address(log, server)
        finally:
            server.terminate()
            server.wait(30)


def _wait_for_address(log: Path, server: subprocess.Popen) -> str:
    """The printed address, once something answers there."""
    for _ in range(600):
        found = re.search(r"http://127\.0\.0\.1:(\d+)/lab\S*token=\w+", log.read_text())
        if found and _answers(int(found.group(1))):
            return found.group(0)
        if server.poll() is not None:
            break
        time.sleep(0.1)
    raise AssertionError(f"JupyterLab did not start:\n{log.read_text()}")


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _press(slider, key: str, picture) -> None:
    before = picture.get_attribute("src")
    slider.focus()
    slider.press(key)
    expect(picture).not_to_have_attribute("src", before, timeout=20_000)


def test_first_notebook_runs_in_jupyterlab_and_its_slider_moves_the_picture(page, lab):
    page.goto(lab, timeout=60_000)
    notebook = page.locator(".jp-Notebook").first
    expect(notebook).to_be_visible(timeout=60_000)
    idle = page.get_by_role("button", name="Python 3 (ipykernel) | Idle")
    expect(idle).to_be_visible(timeout=60_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()

    # To the last cell, without an error on the way.
    expect(page.get_by_text("[*]:").first).to_be_visible(timeout=60_000)
    expect(page.get_by_text("[*]:")).to_have_count(0, timeout=300_000)
    expect(page.locator("[data-mime-type='application/vnd.jupyter.error']")).to_have_count(0)
    expect(page.locator(".jp-Notebook-cell").last).to_contain_text("Next:")

    picture = page.locator(".jp-OutputArea img.widget-image").first
    picture.scroll_into_view_if_needed()
    expect(picture).to_be_visible()
    _press(page.locator(".widget-slider .noUi-handle").first, "ArrowRight", picture)
    expect(page.locator(".widget-slider .widget-readout").first).to_have_text("3")


def test_exported_page_moves_without_kernel_and_network(page, tmp_path):
    command = ["jupyter", "nbconvert", "--to", "html", "--output-dir", str(tmp_path)]
    command = [str(Path(sys.executable).parent / command[0]), *command[1:]]
    subprocess.run(
        [*command, str(NOTEBOOKS / "00_start_here.ipynb")], check=True, capture_output=True
    )
    page.context.set_offline(True)
    page.goto(f"file://{tmp_path / '00_start_here.html'}", wait_until="domcontentloaded")
    frame = page.frame_locator("iframe[title=explorer]").first
    picture, slider = frame.locator("#picture"), frame.locator("input").first
    expect(picture).to_be_visible(timeout=20_000)
    _press(slider, "ArrowRight", picture)
    expect(frame.locator("output").first).to_have_text("3")

"""The machine's own browser for this room, driven by Playwright, and what a page in it tells and asks for."""

from pathlib import Path
from typing import NamedTuple

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from editkit.figures import find_browser

LONG = 60_000  # milliseconds that nothing in a page takes
OWN = ("data:", "blob:")  # addresses of what a page brings along
expect.set_options(timeout=LONG)


class Visit(NamedTuple):
    """A page in a context of its own."""

    page: Page
    told: list[str]
    """Errors and warnings in the console, and what no script caught."""
    asked: list[str]
    """Addresses it wanted anything from."""


@pytest.fixture(scope="package")
def chromium_path() -> str:
    """Where the browser is; tests that ask for it are skipped where there is none."""
    if (path := find_browser()) is None:
        pytest.skip("no Chrome, Chromium or Edge to open pages in")
    return path


@pytest.fixture(scope="package")
def chromium(chromium_path: str):
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def visit(chromium: Browser):
    """``visit(address, color_scheme="dark")``: open a page; further words are what Playwright's contexts take."""

    def open_page(address: str | Path, **how) -> Visit:
        context = chromium.new_context(**how)
        context.set_default_timeout(LONG)
        page, told, asked = context.new_page(), [], []
        page.on(
            "console", lambda message: told.append(_said(message)) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: told.append(str(error)))
        context.on("request", lambda request: asked.append(request.url) if not request.url.startswith(OWN) else None)
        page.goto(address.as_uri() if isinstance(address, Path) else address)
        return Visit(page, told, asked)

    return open_page


def _said(message: ConsoleMessage) -> str:
    return f"{message.type}: {message.text}"

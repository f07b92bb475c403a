"""Get a browser for a machine that has none: it prints the report's PDF and draws figures as PNG files.

    python -m editkit.report.browser

The last step of ``make setup``. Without one the report is its HTML alone, whose figures any reader's browser draws.
"""

import os
import shutil
import socket
import subprocess
import zipfile
from collections.abc import Callable, Mapping, Sequence

import kaleido

from editkit.figures import INSTALL_BROWSER, find_browser

PACKAGES = ("chromium", "fonts-dejavu", "fonts-liberation")  # of Debian
APT = ("apt-get", "-qq", "-o", "Acquire::Retries=3", "-o", "Acquire::http::Timeout=60")
TIMEOUT = 60  # seconds without an answer after which a download has failed


def steps(found: str | None, *, chosen: bool, root: bool, apt: bool) -> tuple[str, ...]:
    """List the ways of getting a browser that are worth a try, in order.

    Args:
        found: a browser that starts; then there is nothing to do.
        chosen: whether the user named one by ``BROWSER_PATH``, which nothing is to replace.
        root: whether packages may be installed, with ``apt``: apt-get, which brings the libraries along too.
    """
    if found or chosen:
        return ()
    return ("apt", "chrome") if root and apt else ("chrome",)


def install(names: Sequence[str], ways: Mapping[str, Callable[[], None]], look: Callable[[], str | None]) -> list[str]:
    """Take these steps until there is a browser that starts. Returns why those that were taken did not help."""
    failed = []
    for name in names:
        try:
            ways[name]()
        except (OSError, RuntimeError, subprocess.SubprocessError, zipfile.BadZipFile) as error:
            failed.append(f"{name}: {' '.join(str(error).split()):.200}")
            continue
        if look():
            break
        failed.append(f"{name}: what was installed does not start")
    return failed


def _apt() -> None:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update"], ["install", "--yes", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run([*APT, *words], env=environment, capture_output=True, text=True, errors="replace")
        if done.returncode:
            raise RuntimeError(f"apt-get {words[0]} failed: {done.stderr.strip()[-300:]}")


def _chrome() -> None:
    """Put Chrome for Testing where :func:`editkit.figures.find_browser` looks first."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        kaleido.get_chrome_sync()
    finally:
        socket.setdefaulttimeout(before)


def main() -> None:
    """Get a browser where there is none, and say in one line which one there is or what is left out without one."""
    root, apt = hasattr(os, "geteuid") and os.geteuid() == 0, shutil.which("apt-get") is not None
    names = steps(find_browser(), chosen=bool(os.environ.get("BROWSER_PATH")), root=root, apt=apt)
    failed = install(names, {"apt": _apt, "chrome": _chrome}, find_browser)
    if browser := find_browser():
        print(f"  {browser}")
    else:
        why = f" ({'; '.join(failed)})" if failed else ""
        print(f"  none{why}: the report will be HTML alone, without PDF and PNG files; {INSTALL_BROWSER}")


if __name__ == "__main__":
    main()

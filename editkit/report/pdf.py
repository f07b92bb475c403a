"""Print the HTML report to PDF with an installed Chrome, Chromium or Edge."""

import os
import subprocess
import tempfile
from pathlib import Path

from editkit.figures import INSTALL_BROWSER


def browser_flags(profile: str | Path) -> list[str]:
    """List the flags of a headless browser that keeps to itself: own profile, no traffic of its own."""
    flags = [
        "--headless",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={profile}",
    ]
    # Chromium's sandbox does not start for root, as in a container.
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    return [*flags, "--no-sandbox"] if is_root else flags


def print_pdf(html: Path, pdf: Path, browser: str | None, timeout: float = 180) -> None:
    """Print ``html`` to ``pdf``, which appears only when complete.

    Raises ``RuntimeError`` with the reason where there is no browser or it fails.
    """
    if browser is None:
        raise RuntimeError(f"no browser found to print it; {INSTALL_BROWSER}")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        printed = pdf.with_suffix(".partial.pdf").resolve()
        command = [
            browser,
            *browser_flags(profile),
            "--no-pdf-header-footer",
            "--generate-pdf-document-outline",
            "--virtual-time-budget=20000",
            f"--print-to-pdf={printed}",
            html.resolve().as_uri(),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout)
            if done.returncode or not printed.is_file() or not printed.stat().st_size:
                raise RuntimeError(f"{browser} printed nothing: {done.stderr.strip()[-500:]}")
            os.replace(printed, pdf)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{browser} did not finish printing within {timeout:.0f} s") from None
        except OSError as error:
            raise RuntimeError(f"{browser} could not be started: {error}") from None
        finally:
            printed.unlink(missing_ok=True)

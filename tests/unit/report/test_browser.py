"""The set-up's last step: whether a browser is got, and how."""

import pytest

from editkit.report import browser


@pytest.mark.parametrize(
    ("found", "chosen", "root", "apt", "taken"),
    [
        ("/usr/bin/chromium", False, True, True, ()),
        (None, True, True, True, ()),
        (None, False, True, True, ("apt", "chrome")),
        (None, False, False, True, ("chrome",)),
        (None, False, True, False, ("chrome",)),
    ],
)
def test_steps_are_those_that_can_help(found, chosen, root, apt, taken):
    assert browser.steps(found, chosen=chosen, root=root, apt=apt) == taken


def machine(**ends):
    """Ways of installing that end as told: with an error, with a browser that starts, or with one that does not."""
    there, taken = [], []

    def way(name, end):
        def go():
            taken.append(name)
            if isinstance(end, Exception):
                raise end
            there.extend([name] * end)

        return go

    ways = {name: way(name, end) for name, end in ends.items()}
    return ways, lambda: there[-1] if there else None, taken


@pytest.mark.parametrize(
    ("apt", "chrome", "taken", "failed"),
    [
        (True, True, ["apt"], []),
        (False, True, ["apt", "chrome"], ["apt: what was installed does not start"]),
        (RuntimeError("no\nnetwork"), True, ["apt", "chrome"], ["apt: no network"]),
        (OSError("none"), OSError("none either"), ["apt", "chrome"], ["apt: none", "chrome: none either"]),
    ],
)
def test_steps_are_taken_until_one_helps(apt, chrome, taken, failed):
    ways, look, done = machine(apt=apt, chrome=chrome)
    assert browser.install(["apt", "chrome"], ways, look) == failed and done == taken


def test_a_machine_without_a_browser_is_told_what_is_left_out_in_one_line(monkeypatch, capsys):
    monkeypatch.delenv("BROWSER_PATH", raising=False)
    monkeypatch.setattr(browser, "find_browser", lambda: None)
    for name in ("_apt", "_chrome"):
        monkeypatch.setattr(browser, name, machine(one=OSError("no route to host"))[0]["one"])
    browser.main()
    [line] = capsys.readouterr().out.splitlines()
    assert "no route to host" in line and "HTML alone" in line and "BROWSER_PATH" in line

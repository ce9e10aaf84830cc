import subprocess
import sys

import pytest

from qatviz import __main__ as command


def test_lab_listens_on_this_machine_only_and_opens_the_first_notebook():
    words = command.lab_command(8888)
    assert "--ServerApp.ip=127.0.0.1" in words
    assert "--ServerApp.port=8888" in words
    assert (command.NOTEBOOKS / "00_start_here.ipynb").is_file()
    assert f"--ServerApp.root_dir={command.NOTEBOOKS}" in words
    assert "--LabApp.default_url=/lab/tree/00_start_here.ipynb" in words
    assert not [word for word in words if "token" in word], "Jupyter's own random token stays"


def test_lab_opens_no_browser_without_a_screen(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert "--no-browser" in command.lab_command(8888)
    monkeypatch.setenv("DISPLAY", ":0")
    assert "--no-browser" not in command.lab_command(8888)


@pytest.mark.parametrize(("user", "allowed"), [(0, True), (1000, False)])
def test_lab_allows_root_only_to_root(monkeypatch, user, allowed):
    monkeypatch.setattr("os.geteuid", lambda: user)
    assert ("--allow-root" in command.lab_command(8888)) is allowed


def test_an_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit):
        command.main(["dance"])
    assert "invalid choice: 'dance'" in capsys.readouterr().err


def test_the_command_line_imports_no_torch_until_it_needs_it():
    code = (
        "import sys; from qatviz.__main__ import _parser;"
        "_parser().parse_args(['study', 'x.toml', '--jobs', '2', '--dry-run']);"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("words", [["study"], ["study", "f", "--jobs", "0"], ["runs", "dance"]])
def test_impossible_words_are_refused(words, capsys):
    with pytest.raises(SystemExit):
        command.main(words)
    assert "usage: python -m qatviz" in capsys.readouterr().err

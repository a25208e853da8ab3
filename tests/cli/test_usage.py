"""What the command line itself refuses is one sentence, as everything else that is refused."""

import sys

import pytest

from harness.cli import main


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("run --limit abc", "harness: invalid value for '--limit' / '-L': Input should be a valid number"),
        (
            "run --nosuch",
            "harness: no such option: --nosuch (Possible options: --no_resume).",
        ),
        ("runn", "harness: no such command 'runn'. Did you mean 'run'? See `harness --help`."),
        ("show", "harness: missing argument 'name'. See `harness show --help`."),
        ("ls nothing", "harness: no such command 'nothing'. See `harness ls --help`."),
        ("validate .", "harness: . has no runs to validate: give a run's folder, or a folder with many"),
    ],
)
def test_one_style_for_all(words, sentence, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["harness", *words.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(sentence)


def test_without_a_command_there_is_help(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["harness"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("Usage: harness")

"""The reproduction book, in parts and in small."""

from __future__ import annotations

import pytest

from recipes.book import PARTS, main
from tests.helpers import reset_accelerate


def test_a_part_has_claim_figure_number_and_command_and_is_not_made_twice(tmp_path, capsys):
    reset_accelerate()
    words = ["--steps", "1", "--seeds", "0", "--only", "masked", "inside", "--output", str(tmp_path / "book")]
    main(words)
    page = (tmp_path / "book" / "book.html").read_text()
    for text in ("Claim: ", "Command: mpp pretrain", "Command: mpp look", "mean attention distance", "Not here"):
        assert text in page
    assert page.count("<img") == 8
    said = capsys.readouterr().out
    assert "mpp pretrain" in said
    main(words)
    assert "mpp pretrain" not in capsys.readouterr().out, "what is done is not made again"
    assert list(PARTS) == [
        *(
            "masked",
            "help",
            "inside",
            "positions",
            "choices",
            "scaling",
            "kinds",
            "tasks",
            "cost",
            "dense",
            "references",
        )
    ]


def test_a_stopped_part_ends_the_book_and_is_not_taken_for_done(tmp_path, monkeypatch):
    monkeypatch.setattr("recipes.book.command", lambda name: lambda line: {})
    (tmp_path / "book" / "pretrained").mkdir(parents=True)
    with pytest.raises(SystemExit, match="the same command goes on"):
        main(["--only", "masked", "--output", str(tmp_path / "book")])
    assert not list(tmp_path.rglob("book.done"))

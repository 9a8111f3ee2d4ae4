"""Many questions from MER-MCE's file: answered in their order, gone on with where they stopped, checked before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mechm.cli import cli
from mechm.minigpt.importing import import_minigpt
from mechm.minigpt.model import open_minigpt
from mechm.minigpt.picture import first_frame_pixels
from mechm.minigpt.questions import answer_questions, read_questions, write_answers
from mechm_runtime.errors import InputError, MediaError

TEXTS = ("Ana: I got the job!", "Ben: No way, congratulations!", "Ana: the dog is loose again.")


@pytest.fixture
def asked(repository: Path, tmp_path: Path) -> Path:
    """Two questions about one clip, one about another; the clips are the shipped sample."""
    for name in ("dia1utt1.mp4", "dia1utt2.avi"):
        shutil.copy(repository / "sample/conversation.mp4", tmp_path / name)
    names = ("dia1utt1", "dia1utt1", "dia1utt2")
    rows = [{"name": name, "input": text, "target": "joy"} for name, text in zip(names, TEXTS, strict=True)]
    file = tmp_path / "questions.json"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_the_command_answers_in_order_and_goes_on_where_it_stopped(
    shared_files: Any, asked: Path, tmp_path: Path
) -> None:
    files, out, model = shared_files, tmp_path / "answers.txt", tmp_path / "model"
    import_minigpt(files.checkpoint, files.llama, files.vit, model, dtype="fp32", shape=files.small)
    opened = open_minigpt(model)
    tokens = opened.encode_picture(first_frame_pixels(tmp_path / "dia1utt1.mp4", 112))
    expected = [" ".join(opened.answer(tokens, text, task="emotion").split()) for text in TEXTS]
    assert len(set(expected)) == 3
    arguments = ["ask", "questions", "--model", model, "--task", "emotion", "--clips", tmp_path, "--out", out, asked]
    command = [*map(str, arguments), "--device", "cpu"]
    done = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    lines = out.read_text().splitlines()
    assert [line.split("\t") for line in lines] == [
        ["dia1utt1", expected[0]],
        ["dia1utt1", expected[1]],
        ["dia1utt2", expected[2]],
    ]
    with pytest.raises(InputError, match="exists"):
        CliRunner().invoke(cli, command, catch_exceptions=False)
    out.write_text(f"{lines[0]}\ndia1utt1\tkept as it is\n")
    assert CliRunner().invoke(cli, [*command, "--resume"], catch_exceptions=False).exit_code == 0
    assert out.read_text().splitlines() == [lines[0], "dia1utt1\tkept as it is", lines[2]]
    together = answer_questions(opened, read_questions(asked, tmp_path), task="emotion", max_new_tokens=20, n_threads=3)
    assert [" ".join(words.split()) for words in together] == expected


def test_a_clip_that_breaks_leaves_the_answers_before_it(shared_files: Any, asked: Path, tmp_path: Path) -> None:
    files, model, out = shared_files, tmp_path / "model", tmp_path / "answers.txt"
    import_minigpt(files.checkpoint, files.llama, files.vit, model, dtype="fp32", shape=files.small)
    opened = open_minigpt(model)
    (tmp_path / "dia1utt2.avi").write_bytes(b"no clip")
    some = read_questions(asked, tmp_path)
    with pytest.raises(MediaError, match=r"dia1utt2\.avi"):
        list(write_answers(out, some, lambda left: answer_questions(opened, left, task=None, max_new_tokens=3)))
    assert [line.split("\t")[0] for line in out.read_text().splitlines()] == ["dia1utt1", "dia1utt1"]


def test_what_is_no_question_is_refused_before_the_work(asked: Path, tmp_path: Path) -> None:
    some = read_questions(asked, tmp_path)
    (tmp_path / "answers.txt").write_text("dia9utt9\tjoy\n")
    with pytest.raises(InputError, match="does not hold the first answers"):
        list(write_answers(tmp_path / "answers.txt", some, lambda left: iter([])))
    with pytest.raises(InputError, match="lack files of 3 questions: dia1utt1, dia1utt1, dia1utt2"):
        read_questions(asked, tmp_path, tmp_path)
    good = asked.read_text()
    for line in ("no JSON", "[1]", '{"name": "a"}', '{"name": "../a", "input": "b"}', '{"name": "a", "input": 3}'):
        asked.write_text(f"{good}{line}\n")
        with pytest.raises(InputError, match="line 4: no question"):
            read_questions(asked, tmp_path)
    asked.write_text(f'{good}{{"name": "dia7utt7", "input": "?"}}\n')
    with pytest.raises(InputError, match="lack files of 1 questions: dia7utt7"):
        read_questions(asked, tmp_path)
    asked.write_text("\n")
    with pytest.raises(InputError, match="has no questions"):
        read_questions(asked, tmp_path)

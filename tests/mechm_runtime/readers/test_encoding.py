"""Encodings of transcripts: found where sure and said in a note, refused otherwise, never mojibake."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from mechm_runtime.errors import TranscriptError
from mechm_runtime.readers import read_transcript
from mechm_runtime.readers.encoding import UnknownEncodingError, decode_text
from mechm_runtime.readers.text_file import clean_text

WORDS = {
    "zh": ["我考上大学了，太开心了！", "谢谢你，我也很高兴。"],
    "zh-tw": ["我考上大學了，太開心了！", "謝謝你，我也很高興。"],
    "ja": ["大学に合格しました。とても嬉しいです。", "おめでとうございます。"],
    "ko": ["대학에 합격했어요. 너무 기뻐요.", "정말 축하해요. 나도 기뻐요."],
    "ru": ["Я сдал экзамен, я так рад.", "Поздравляю тебя, это замечательно."],
    "de": ["Ich habe die Prüfung bestanden, schön!", "Das ist großartig, Frau Müller, ähnlich."],
    "fr": ["J’ai réussi l’examen, c’était dur.", "Très bien, félicitations à toi."],
    "es": ["¿Qué tal? ¡Aprobé el examen!", "Muy bien, señor."],
    "en": ["I don’t like it. It’s “fine”.", "She can’t be serious…"],
    "pl": ["Zdałem egzamin, jestem szczęśliwy.", "To świetnie, gratulacje, żółw."],
    "cs": ["Udělal jsem zkoušku, jsem šťastný.", "To je skvělé, gratuluji."],
    "el": ["Πέρασα τις εξετάσεις.", "Συγχαρητήρια, είναι υπέροχο."],
}
ENCODED = [
    ("zh", "gb18030", "GB18030"),
    ("zh", "gb2312", "GB18030"),
    ("zh-tw", "big5", "Big5"),
    ("ja", "cp932", "Shift-JIS"),
    ("ja", "euc_jp", "EUC-JP"),
    ("ko", "cp949", "EUC-KR"),
    ("ru", "cp1251", "Windows-1251"),
    ("ru", "koi8_r", "KOI8-R"),
    ("ru", "cp866", "CP866"),
    ("ru", "mac_cyrillic", "Mac Cyrillic"),
    ("de", "cp1252", "Windows-1252"),
    ("de", "latin-1", "Windows-1252"),
    ("de", "mac_roman", "Mac Roman"),
    ("fr", "cp1252", "Windows-1252"),
    ("fr", "mac_roman", "Mac Roman"),
    ("es", "cp1252", "Windows-1252"),
    ("en", "cp1252", "Windows-1252"),
    ("en", "mac_roman", "Mac Roman"),
    ("pl", "cp1250", "Windows-1250"),
    ("cs", "cp1250", "Windows-1250"),
    ("el", "cp1253", "Windows-1253"),
    ("en", "utf-16-le", "UTF-16LE"),
    ("zh", "utf-16-be", "UTF-16BE"),
    ("ja", "utf-32-le", "UTF-32LE"),
    ("ru", "utf-32-be", "UTF-32BE"),
]


def srt(lines: list[str]) -> str:
    return "\n".join(f"{n}\n00:00:0{n},000 --> 00:00:0{n + 1},000\n{line}\n" for n, line in enumerate(lines, start=1))


@pytest.mark.parametrize(("language", "encoding", "name"), ENCODED)
def test_an_encoding_is_found_and_named(language: str, encoding: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / "talk.srt"
    path.write_bytes(srt(WORDS[language] * 2).encode(encoding, errors="replace"))
    (conversation,) = read_transcript(path)
    wanted = [line.encode(encoding, errors="replace").decode(encoding) for line in WORDS[language] * 2]
    assert [u.text for u in conversation.utterances] == wanted
    assert conversation.notes[0] == f"the file was read as {name}, since it is not UTF-8"


@pytest.mark.parametrize(("language", "encoding", "name"), ENCODED)
def test_a_short_file_is_read_right_or_refused(language: str, encoding: str, name: str) -> None:
    data = srt(WORDS[language][:1]).encode(encoding, errors="replace")
    with suppress(UnknownEncodingError):
        assert decode_text(data).text == data.decode(encoding)


def test_one_line_of_chinese() -> None:
    data = "1\n00:00:01,000 --> 00:00:02,000\n我考上大学了，太高兴了！\n".encode("gbk")
    assert decode_text(data).text.endswith("我考上大学了，太高兴了！\n")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_marked_files_need_no_note(encoding: str) -> None:
    decoded = decode_text("Grüße, 你好".encode(encoding))
    assert (decoded.text, decoded.notes) == ("Grüße, 你好", ())


def test_several_byte_order_marks() -> None:
    decoded = decode_text(b"\xef\xbb\xbf\xef\xbb\xbfone\n\xef\xbb\xbftwo")
    assert (decoded.text, decoded.notes) == ("one\ntwo", ("3 byte order marks were removed",))


def test_leftovers_in_utf_8() -> None:
    text = "Grüße an alle, schöne Größe, ähnlich übel, für Müller. " * 3
    decoded = decode_text(text.encode() + b"I don\x92t. " + "你".encode()[:2])
    assert decoded.text == text + "I don’t. \ufffd"
    assert decoded.notes == (
        "1 byte that is not UTF-8 was read as Windows-1252",
        "1 damaged character was replaced by U+FFFD",
    )


@pytest.mark.parametrize("data", [b"a\x81\x8d\x8f\x90\xff", bytes(range(128, 256)), b"x\xff\xfe\xfd" * 50])
def test_bytes_without_a_meaning_are_refused_without_a_guess(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "talk.srt"
    path.write_bytes(b"1\n00:00:01,000 --> 00:00:02,000\n" + data)
    with pytest.raises(TranscriptError, match="its encoding is unknown") as caught:
        read_transcript(path)
    assert "iconv -f ENCODING" in caught.value.hint


def test_c1_controls_are_what_windows_1252_has_there(tmp_path: Path) -> None:
    assert clean_text("I don\u0092t\u0085 \u0093yes\u0094 \u0096 no\u0081 \u0080") == "I don’t… “yes” – no €"
    path = tmp_path / "meld.json"
    turn = {"utterance_ID": 1, "speaker": "A", "text": "I don\u0092t like it"}
    path.write_text(json.dumps({"conversation_ID": 1, "conversation": [turn]}))
    assert read_transcript(path)[0].utterances[0].text == "I don’t like it"


def test_the_detector_is_imported_only_where_it_is_needed() -> None:
    code = "import sys, mechm_runtime.readers; sys.exit('charset_normalizer' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.timeout(60)
def test_a_large_file_takes_linear_time() -> None:
    data = srt(WORDS["zh"]).encode("gbk") * 20_000
    started = time.perf_counter()
    decode_text(data)
    assert time.perf_counter() - started < 10

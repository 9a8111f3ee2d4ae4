"""Files that people and scorers read: JSON, WebVTT, SemEval submissions."""

from __future__ import annotations

import dataclasses
import html
import json
import os
import re
import runpy
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from mechm_runtime.errors import InputError, LabelError
from mechm_runtime.output.writers import vtt_of, write_bytes, write_json, write_submission, write_vtt, write_vtts
from mechm_runtime.types import Analysis, Pair

examples = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("examples.py"))))


def changed(analysis: Analysis, number: int, **fields: object) -> Analysis:
    utterances = tuple(dataclasses.replace(u, **fields) if u.id == number else u for u in analysis.utterances)  # type: ignore[arg-type]
    return dataclasses.replace(analysis, utterances=utterances)


def test_json_is_an_object_or_a_list_and_json_lines_are_lines(tmp_path: Path):
    one, two = examples.phone_call(), examples.scene()
    write_json([one], tmp_path / "one.json")
    assert json.loads((tmp_path / "one.json").read_text(encoding="utf-8")) == json.loads(one.to_json())
    both = [json.loads(one.to_json()), json.loads(two.to_json())]
    write_json([one, two], tmp_path / "two.json")
    assert json.loads((tmp_path / "two.json").read_text(encoding="utf-8")) == both
    write_json([one], tmp_path / "left.json", as_list=True)
    assert json.loads((tmp_path / "left.json").read_text(encoding="utf-8")) == both[:1]
    write_json([], tmp_path / "none.json")
    assert json.loads((tmp_path / "none.json").read_text(encoding="utf-8")) == []
    for analyses in ([one, two], [one], []):
        write_json(analyses, tmp_path / "some.jsonl")
        lines = (tmp_path / "some.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line)["conversation_id"] for line in lines] == [a.conversation_id for a in analyses]


def test_json_keeps_any_text_a_transcript_can_hold(tmp_path: Path):
    text = 'é 語 🎭 \ud83c "quotes" \\ \u2028 \x1b[31m'
    write_json([changed(examples.phone_call(), 1, text=text)], tmp_path / "odd.json")
    assert json.loads((tmp_path / "odd.json").read_bytes().decode("utf-8"))["utterances"][0]["text"] == text


def test_submission_has_the_form_of_the_task(tmp_path: Path):
    analysis = dataclasses.replace(
        examples.scene(),
        conversation_id="16",
        pairs=(Pair(10, "joy", 9, 0.9), Pair(3, "fear", 3, 0.5), Pair(3, "fear", 1, 0.8)),
    )
    other = dataclasses.replace(examples.phone_call(), conversation_id="call 7", pairs=())
    write_submission([analysis, other], tmp_path / "s.json")
    assert json.loads((tmp_path / "s.json").read_text(encoding="utf-8")) == [
        {"conversation_ID": 16, "emotion-cause_pairs": [["3_fear", "1"], ["3_fear", "3"], ["10_joy", "9"]]},
        {"conversation_ID": "call 7", "emotion-cause_pairs": []},
    ]
    write_submission([analysis], tmp_path / "c.json", with_conversation=True)
    (item,) = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))
    assert list(item) == ["conversation_ID", "conversation", "emotion-cause_pairs"]
    assert item["conversation"][0] == {
        "utterance_ID": 1,
        "text": analysis.utterances[0].text,
        "speaker": "Mara",
        "emotion": "fear",
    }


@pytest.mark.parametrize("name", ["gpt4o.json", "nus_emo.json"])
def test_submissions_of_others_come_out_as_they_were(tmp_path: Path, name: str):
    if "MECHM_DATA" not in os.environ:
        pytest.skip("MECHM_DATA is not set")
    rival = json.loads((Path(os.environ["MECHM_DATA"]) / "data/ecf/rivals" / name).read_text(encoding="utf-8"))
    analyses = []
    for item in rival:
        pairs = []
        for effect, cause in item["emotion-cause_pairs"]:
            number, emotion = effect.split("_")
            pairs.append(Pair(int(number), emotion, int(cause), 0.5))
        analyses.append(
            dataclasses.replace(examples.scene(), conversation_id=str(item["conversation_ID"]), pairs=tuple(pairs))
        )
    write_submission(analyses, tmp_path / "out.json")
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert [item["conversation_ID"] for item in written] == [item["conversation_ID"] for item in rival]
    for ours, theirs in zip(written, rival, strict=True):
        assert sorted(ours["emotion-cause_pairs"]) == sorted(
            map(list, {tuple(p) for p in theirs["emotion-cause_pairs"]})
        )


def test_submission_refuses_what_a_scorer_would_misread(tmp_path: Path):
    analysis = examples.scene()
    with pytest.raises(InputError, match="twice"):
        write_submission([analysis, analysis], tmp_path / "s.json")
    with pytest.raises(LabelError, match="neutral"):
        write_submission([dataclasses.replace(analysis, pairs=(Pair(2, "neutral", 1, 0.5),))], tmp_path / "s.json")
    assert list(tmp_path.iterdir()) == []


CUE = re.compile(
    r"(?P<id>\d+)\n(?P<start>\d\d:\d\d:\d\d\.\d{3}) --> (?P<end>\d\d:\d\d:\d\d\.\d{3})\n"
    r"<v (?P<voice>[^\n>]+)>(?P<text>.*)</v>"
)


def test_subtitles_hold_every_utterance_with_speaker_emotion_and_causes(tmp_path: Path):
    analysis = examples.phone_call()
    write_vtt(analysis, tmp_path / "call.vtt")
    text = (tmp_path / "call.vtt").read_text(encoding="utf-8")
    assert text.startswith("WEBVTT\n\n")
    blocks = [block for block in text.split("\n\n") if CUE.match(block)]
    assert len(blocks) == len(analysis.utterances)
    for block, utterance in zip(blocks, analysis.utterances, strict=True):
        found = CUE.match(block)
        assert found is not None
        assert (int(found["id"]), found["voice"]) == (utterance.id, utterance.speaker)
        assert html.unescape(found["text"]) == utterance.text
        assert block.count("←") == len(analysis.causes_of(utterance.id))
    assert "<c.surprise>surprise 79%</c>\n<i>← 8 Ines: And I'm Ines" in text
    assert "<c.unsure>unsure 38%</c>" in text
    assert "neutral" not in text


def test_subtitles_escape_what_players_would_take_for_markup():
    analysis = changed(examples.phone_call(), 2, speaker="A<b> & Co\n", text="<i>x</i> --> 1 & 2\n\n00:00 --> 00:01")
    text = vtt_of(analysis)
    assert "<v A&lt;b&gt; &amp; Co>&lt;i&gt;x&lt;/i&gt; --&gt; 1 &amp; 2 00:00 --&gt; 00:01</v>" in text
    assert len(re.findall("-->", text)) == len(analysis.utterances)


def test_cues_rise_and_last_even_where_people_speak_at_once():
    analysis = changed(examples.phone_call(), 5, start_s=7.0, end_s=7.0, text=None)
    found = list(CUE.finditer(vtt_of(analysis)))
    starts = [cue["start"] for cue in found]
    assert starts == sorted(starts)
    assert all(cue["start"] < cue["end"] for cue in found)
    assert [cue["text"] for cue in found if cue["id"] == "5"] == ["<i>(words unknown)</i>"]


def test_subtitles_need_times_and_nothing_is_written_without(tmp_path: Path):
    with pytest.raises(InputError, match=r"without times \(1, 2, 3, 4, 5, …\)") as caught:
        write_vtts([examples.phone_call(), examples.scene()], tmp_path / "both.vtt")
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_many_conversations_get_a_file_each(tmp_path: Path):
    first = examples.phone_call()
    second = dataclasses.replace(first, conversation_id="../../etc/pass wd")
    paths = write_vtts([first, second], tmp_path / "talks.vtt")
    assert [path.name for path in paths] == ["talks.phone_call.vtt", "talks.etc_pass_wd.vtt"]
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in paths}
    assert write_vtts([first], tmp_path / "talk.vtt") == (tmp_path / "talk.vtt",)
    with pytest.raises(InputError, match="two conversations"):
        write_vtts([first, first], tmp_path / "again.vtt")


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "out.json"
    write_bytes(path, b"old")

    def full_disk(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:1])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(InputError, match="No space left"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]


def test_where_files_may_go(tmp_path: Path):
    with pytest.raises(InputError, match="folder does not exist"):
        write_bytes(tmp_path / "no" / "out.json", b"x")
    with pytest.raises(InputError, match="is a folder"):
        write_bytes(tmp_path, b"x")
    (tmp_path / "real.json").write_bytes(b"old")
    (tmp_path / "link.json").symlink_to("real.json")
    write_bytes(tmp_path / "link.json", b"new")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "real.json").read_bytes() == b"new"
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "real.json").stat().st_mode) == 0o666 & ~umask


def test_a_device_is_written_to_and_not_replaced():
    write_bytes(Path(os.devnull), b"x")
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)

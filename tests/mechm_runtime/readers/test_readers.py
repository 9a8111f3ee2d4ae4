"""Reading transcripts of any format: which format it is, what is in it, and every way to be given a bad file."""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechm_runtime.errors import LabelError, MechmError, TranscriptError
from mechm_runtime.readers import (
    clip_names,
    parse_conversation,
    read_labelled,
    read_submission,
    read_transcript,
    require_content,
)
from mechm_runtime.types import EMOTIONS, Conversation, GoldPair, Utterance

Write = Callable[[str, str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


def ecf(**changes: object) -> dict[str, object]:
    """A conversation in the form of SemEval-2024, with changes at its top level."""
    turns = [
        {"utterance_ID": 1, "text": "We won !", "speaker": "Ross", "emotion": "joy", "video_name": "dia7utt1.mp4"},
        {"utterance_ID": 2, "text": "Really ?", "speaker": "Joey", "emotion": "surprise", "video_name": "dia7utt2.mp4"},
        {"utterance_ID": 3, "text": "Okay .", "speaker": "Ross", "emotion": "neutral", "video_name": "dia7utt3.mp4"},
    ]
    pairs: list[list[object]] = [["1_joy", "1"], ["2_surprise", "1_We won"], ["2_surprise", 2]]
    return {"conversation_ID": 7, "conversation": turns, "emotion-cause_pairs": pairs} | changes


def utterance(**changes: object) -> dict[str, object]:
    return ecf(conversation=[{"utterance_ID": 1, "text": "We won !"} | changes], **{"emotion-cause_pairs": None})


MECPE = (
    "7 3\n(1,1),(2,1)\n"
    "1 | Ross | joy | We won | or did we ? | Friends_S1E4: 00:10:03.420 - 00:10:04.382\n"
    "2 | Joey | surprise | Really ? | Friends_S1E4: 00:10:05.000 - 00:10:06.125\n"
    "3 | Ross | neutral | Okay . | Friends_S1E4: 00:10:04.900 - 00:10:07.000\n"
    "8 1\n\n1 | Ross | neutral |  | \n"
)
STM = (
    ";; made by a test\nb A Diane 2.5 3 Hello?\n"
    "a A Sheila 0.5 1.5 <o,f0,female> Neither did I.\na B Diane .25 2 <NA> Oh\n"
)
RTTM = "SPKR-INFO a 1 <NA> <NA> <NA> unknown s1 <NA>\nSPEAKER a 1 6.690 0.430 <NA> <NA> s1 <NA> <NA>\n"
SRT = "1\n00:00:01,000 --> 00:00:02,500\nHello.\n"


# What is read


def test_semeval_json(write: Write) -> None:
    (labelled,) = read_labelled(write("gold.json", json.dumps([ecf()])))
    assert labelled.conversation.id == "7"
    assert [(u.id, u.speaker, u.text) for u in labelled.conversation.utterances] == [
        (1, "Ross", "We won !"),
        (2, "Joey", "Really ?"),
        (3, "Ross", "Okay ."),
    ]
    assert labelled.emotions == ("joy", "surprise", "neutral")
    assert labelled.pairs == {GoldPair(1, "joy", 1), GoldPair(2, "surprise", 1), GoldPair(2, "surprise", 2)}


def test_one_object_without_annotation_is_a_transcript(write: Write) -> None:
    path = write("talk", json.dumps({"conversation_ID": "a b", "conversation": [{"utterance_ID": "1", "text": "Hi"}]}))
    (conversation,) = read_transcript(path)
    assert conversation == Conversation("a b", (Utterance(1, "", "Hi"),))
    with pytest.raises(LabelError, match="no annotated pairs"):
        read_labelled(path)


def test_times_in_json(write: Write) -> None:
    source = ["S01E01", "00:07:40.335", "00:07:44.880"]
    path = write("a.json", json.dumps(utterance(video_source=source)))
    (without_recording,) = read_transcript(path)
    (in_episode,) = read_transcript(path, media=Path("episode.mkv"), media_duration_s=1500.0)
    assert without_recording.utterances[0].end_s == 4.545
    assert (in_episode.utterances[0].start_s, in_episode.media) == (460.335, Path("episode.mkv"))
    (own,) = read_transcript(write("b.json", json.dumps(utterance(video_source=source, start_s=3, end_s=4.5))))
    assert (own.utterances[0].start_s, own.utterances[0].end_s) == (3.0, 4.5)


def test_mecpe_text(write: Write) -> None:
    first, second = read_labelled(write("gold.txt", MECPE))
    # Times count from the earliest utterance, may go back between utterances, and a bar inside the text stays.
    assert first.conversation.utterances == (
        Utterance(1, "Ross", "We won | or did we ?", 0.0, 0.962),
        Utterance(2, "Joey", "Really ?", 1.58, 2.705),
        Utterance(3, "Ross", "Okay .", 1.48, 3.58),
    )
    assert first.pairs == {GoldPair(1, "joy", 1), GoldPair(2, "surprise", 1)}
    assert second.pairs == frozenset()
    assert second.conversation.utterances == (Utterance(1, "Ross", None),)


def test_stm_sorts_turns_and_splits_recordings(write: Write) -> None:
    path = write("talk.stm", STM)
    b, a = read_transcript(path)
    assert b == Conversation("b", (Utterance(1, "Diane", "Hello?", 2.5, 3.0),))
    assert a.utterances == (Utterance(1, "Diane", "Oh", 0.25, 2.0), Utterance(2, "Sheila", "Neither did I.", 0.5, 1.5))
    assert read_transcript(path, media=Path("x/a.wav")) == (Conversation("a", a.utterances, Path("x/a.wav")),)
    with pytest.raises(TranscriptError, match="2 conversations for one recording"):
        read_transcript(path, media=Path("other.wav"))


def test_stm_leaves_out_what_is_not_speech(write: Write) -> None:
    path = write("talk.stm", STM + "a A inter_segment_gap 3 4\na A x 4 5 ignore_time_segment_in_scoring\na A y 5 6\n")
    assert [(u.speaker, u.text) for u in read_transcript(path)[1].utterances][2:] == [("y", None)]


def test_rttm_turns_have_no_words(write: Write) -> None:
    (conversation,) = read_transcript(write("talk.rttm", RTTM))
    assert conversation == Conversation("a", (Utterance(1, "s1", None, 6.69, 7.12),))
    with pytest.raises(TranscriptError, match="every utterance is empty"):
        require_content([conversation])
    require_content(read_transcript(write("talk.rttm", RTTM), media=Path("a.wav")))


@pytest.mark.parametrize("name", ["x", "x.txt", "x.srt", "x.json", "x.unknown"])
@pytest.mark.parametrize("content", [json.dumps([ecf()]), MECPE, STM, RTTM, SRT, "WEBVTT\n\n" + SRT])
def test_content_tells_the_format_whatever_the_name(write: Write, name: str, content: str) -> None:
    assert read_transcript(write(name, content))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
def test_encodings(write: Write, encoding: str) -> None:
    path = write("talk.srt", SRT.replace("Hello.", "Grüße, Zoë 😀").encode(encoding))
    assert read_transcript(path)[0].utterances[0].text == "Grüße, Zoë 😀"


def test_a_submission_needs_no_conversations_and_may_hold_neutral(write: Write) -> None:
    submission = [
        {"conversation_ID": 1, "emotion-cause_pairs": [["U3_joy", "1"], ["3_joy", "1_0_4"], ["2_neutral", "2"]]},
        {"conversation_ID": 2, "emotion-cause_pairs": []},
    ]
    assert read_submission(write("s.json", json.dumps(submission))) == {
        "1": {GoldPair(3, "joy", 1), GoldPair(2, "neutral", 2)},
        "2": frozenset(),
    }


def test_clip_names(write: Write) -> None:
    assert clip_names(write("a.json", json.dumps(ecf())))["7", 2] == "dia7utt2.mp4"
    assert clip_names(write("a.txt", "1 1\n\n1 | A | joy | Hi | train_dia559_utt0\n")) == {
        ("1", 1): "train_dia559_utt0"
    }
    assert clip_names(write("a.srt", SRT)) == {}


# What is refused


def test_times_past_the_recording(write: Write) -> None:
    path = write("talk.srt", SRT)
    assert read_transcript(path, media=Path("a.wav"), media_duration_s=2.0)
    (cut,) = read_transcript(path, media=Path("a.wav"), media_duration_s=1.99)
    assert cut.utterances[-1].end_s == 1.99
    with pytest.raises(TranscriptError, match=r"talk\.srt, line 2: ends at 2\.500 s, past .* 0\.500 s"):
        read_transcript(path, media=Path("a.wav"), media_duration_s=0.5)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (json.dumps([ecf(), ecf()]), "conversation '7' appears twice"),
        (json.dumps(utterance(utterance_ID=0)), "is not in 1.."),
        (json.dumps(utterance(utterance_ID=10**30)), "is not in 1.."),
        (json.dumps(utterance(utterance_ID=True)), 'no usable "utterance_ID"'),
        (json.dumps(utterance(utterance_ID=1.5)), 'no usable "utterance_ID"'),
        (json.dumps(utterance(text=["secret"])), '"text" is not text'),
        (json.dumps(utterance(text="secret \ud800")), "surrogate"),
        (json.dumps(utterance(start_s=1)), '"start_s" alone'),
        (json.dumps(utterance(start_s="1", end_s=2)), "not a number of seconds"),
        (json.dumps(utterance(start_s=2, end_s=1)), "before it starts"),
        (json.dumps(utterance(start_s=-1, end_s=1)), "not in 0.."),
        (json.dumps(utterance(start_s=float("nan"), end_s=1)), "not finite"),
        (json.dumps(utterance(start_s=0, end_s=float("inf"))), "not finite"),
        (json.dumps(utterance(start_s=0, end_s=0)).replace('"end_s": 0', '"end_s": 1e999'), "not a number of seconds"),
        (json.dumps(utterance(start_s=0, end_s=10**400)), "not a number of seconds"),
        (json.dumps(utterance(start_s=0, end_s=10**12)), "not in 0.."),
        ('[{"conversation_ID": ' + "1" * 5000 + "}]", "too many digits"),
        (json.dumps(utterance(video_source=["S01E01", "0:99:00", "1:00:00"])), "holds a time that is not one"),
        (json.dumps(utterance(video_source="S01E01")), "not an episode and two times"),
        (json.dumps(ecf(conversation=[], **{"emotion-cause_pairs": []})), "has no utterances"),
        (json.dumps(ecf(conversation="secret")), 'no list "conversation"'),
        (json.dumps(ecf(conversation=["secret"])), "not an object"),
        (json.dumps({"emotion-cause_pairs": []}), 'no usable "conversation_ID"'),
        (json.dumps(ecf(conversation_ID={})), 'no usable "conversation_ID"'),
        ("[]", "no conversations"),
        ("[1]", "not an object"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested too deeply"),
        ('[{"conversation_ID": 1,\n"secret"}]', "line 2: not JSON"),
        ("", "file is empty"),
        (" \n\t\n", "file is empty"),
        ("a secret letter\n", "known format"),
        ("7 3\n(1,1)\n1 | Ross | joy | secret | \n", "line 1: .* the file ends before"),
        ("7 1\n\n1 | Ross | joy | secret | tomorrow: noon\n", "line 3: neither times nor a clip's name"),
        ("7 1\n\nsecret | b | c | d\n", "line 3: not an utterance"),
        ("7 1\n\n2 | Ross | joy | secret |\nsecret\n", "line 4: not a conversation's first line"),
        (MECPE.replace("2 | Joey", "1 | Joey"), "line 4: utterance id 1 appears twice"),
        (MECPE.replace("2 | Joey", "5 | Joey").replace("(2,1)", "(5,1)"), "line 5: utterance id 3 comes after 5"),
        (MECPE.replace("00:10:06.125", "00:10:04.125"), "line 4: ends at .* before it starts"),
        (MECPE.replace("Okay . | Friends_S1E4", "Okay . | Friends_S1E5"), "line 5: another episode"),
        ("a A Diane 2 1 secret\n", "line 1: ends at"),
        ("a A Diane 2 3 x\na A Diane nan 3 secret\n", "line 2: 'nan' is not a number"),
        ("a A Diane 2 3 x\na A Diane -1 3 secret\n", "line 2: time -1 s"),
        ("a A Diane 2 3 x\nsecret\n", "line 2: not a turn"),
        (RTTM.replace("0.430", "-0.430"), "lasts less than nothing"),
        (RTTM + "SECRET row\n", "line 3: unknown row type 'SECRET'"),
        (RTTM.splitlines()[0] + "\n", "no turns"),
    ],
)
def test_bad_content(write: Write, content: str, words: str) -> None:
    with pytest.raises(TranscriptError, match=words) as caught:
        read_transcript(write("bad.txt", content))
    assert str(caught.value).startswith("bad.txt")
    assert "secret" not in str(caught.value) + caught.value.hint


def with_pairs(*pairs: object) -> str:
    return json.dumps(ecf(**{"emotion-cause_pairs": list(pairs)}))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (json.dumps(utterance(emotion="happiness")), "utterance 1: unknown emotion 'happiness'"),
        (with_pairs(["1_happiness", "1"]), "pair 1: unknown emotion 'happiness'"),
        (with_pairs(["1_joy", "1"], ["1_joy", "4"]), "there is no utterance 4"),
        (with_pairs(["9_joy", "1"]), "there is no utterance 9"),
        (with_pairs(["2_joy", "1"]), "utterance 2 is labelled surprise"),
        (with_pairs(["3_neutral", "1"]), "neutral has no cause"),
        (with_pairs(["joy", "1"]), "not a pair"),
        (with_pairs(["1_joy"]), "not a pair"),
        (with_pairs(["1_joy", None]), "not a pair"),
        (with_pairs("1_joy"), "not a pair"),
        (json.dumps(ecf(**{"emotion-cause_pairs": "1_joy"})), "is not a list"),
        (MECPE.replace("surprise", "amazement"), "line 4: unknown emotion 'amazement'"),
        (MECPE.replace("(2,1)", "(2,4)"), "line 2: a pair names utterance 4"),
        (MECPE.replace("(2,1)", "(3,1)"), "line 2: .*neutral has no cause"),
        (MECPE.replace("(2,1)", "(2;1)"), "line 2: not a list of pairs"),
    ],
)
def test_bad_labels(write: Write, content: str, words: str) -> None:
    path = write("bad.json" if content.startswith("{") else "bad.txt", content)
    for read in (read_transcript, read_labelled):
        with pytest.raises(LabelError, match=words):
            read(path)


def test_gold_needs_an_emotion_for_every_utterance(write: Write) -> None:
    turns = [{"utterance_ID": 1, "text": "Hi", "emotion": "joy"}, {"utterance_ID": 2, "text": "Ho"}]
    path = write("gold.json", json.dumps(ecf(conversation=turns, **{"emotion-cause_pairs": []})))
    assert read_transcript(path)
    with pytest.raises(LabelError, match="conversation 7, utterance 2: no emotion"):
        read_labelled(path)


def test_formats_without_annotation_are_no_gold(write: Write) -> None:
    with pytest.raises(TranscriptError, match="holds no annotation"):
        read_labelled(write("talk.srt", SRT))


def test_an_unknown_encoding_names_the_byte_and_the_way_out(write: Write) -> None:
    data = SRT.encode().replace(b"Hello", b"H\x81\x8d\x8f\x90\xff")
    with pytest.raises(TranscriptError, match=rf"byte {data.index(0x81)} \(line 3\) is not UTF-8") as caught:
        read_transcript(write("my talk.srt", data))
    assert "iconv -f ENCODING -t UTF-8 'my talk.srt' > 'my talk.utf8.srt'" in caught.value.hint
    with pytest.raises(TranscriptError, match="UTF-16"):
        read_transcript(write("talk.srt", SRT.encode("utf-16")[:-1]))
    with pytest.raises(TranscriptError, match="NUL"):
        read_transcript(write("talk.srt", SRT + "\0"))


def test_a_large_file_is_not_read(write: Write) -> None:
    path = write("huge.srt", SRT)
    os.truncate(path, 200 * 2**20)  # sparse: it takes no room on the disk
    started = time.perf_counter()
    with pytest.raises(TranscriptError, match="209715200 bytes, more than the 33554432 allowed"):
        read_transcript(path)
    assert time.perf_counter() - started < 0.5
    with pytest.raises(TranscriptError, match="more than the 10 allowed"):
        read_transcript(write("small.srt", SRT), max_bytes=10)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.srt")
    for path in (
        tmp_path,
        tmp_path / "missing.srt",
        tmp_path / "pipe.srt",
        tmp_path / "x\0.srt",
        tmp_path / ("x" * 999),
    ):
        with pytest.raises(TranscriptError):
            read_transcript(path)


def test_require_content(write: Write) -> None:
    empty, spoken = Conversation("1", (Utterance(1),)), Conversation("2", (Utterance(1, text="Hi"),))
    clip = Conversation("3", (Utterance(1, media=Path("dia3utt1.mp4")),))
    for conversations in ([spoken], [empty, spoken], [clip]):
        require_content(conversations)
    with pytest.raises(TranscriptError, match="every utterance is empty"):
        require_content([empty])


# Laws


@pytest.mark.parametrize("suffix", [".srt", ".vtt", ".json", ".txt", ".stm", ".rttm"])
def test_five_thousand_utterances_take_linear_time(write: Write, suffix: str) -> None:
    def content(n: int) -> str:
        spoken = range(1, n + 1)
        match suffix:
            case ".json":
                turns = [
                    {"utterance_ID": i, "text": "Hi", "emotion": "joy", "start_s": i, "end_s": i + 1} for i in spoken
                ]
                pairs = [[f"{i}_joy", "1"] for i in spoken]
                return json.dumps({"conversation_ID": 1, "conversation": turns, "emotion-cause_pairs": pairs})
            case ".txt":
                pairs_line = ",".join(f"({i},1)" for i in spoken)
                return "\n".join([f"1 {n}", pairs_line, *(f"{i} | A | joy | Hi | " for i in spoken)])
            case ".stm":
                return "\n".join(f"a A s {i} {i + 1} Hi" for i in spoken)
            case ".rttm":
                return "\n".join(f"SPEAKER a 1 {i} 1 <NA> <NA> s <NA> <NA>" for i in spoken)
        cues = [f"{i // 3600:02}:{i // 60 % 60:02}:{i % 60:02}.000 --> 09:00:00.000\n<i>Hi</i>\n" for i in spoken]
        return "\n".join(["WEBVTT\n" if suffix == ".vtt" else "", *cues])

    def seconds(n: int) -> float:
        path = write(f"{n}{suffix}", content(n))
        taken = []
        for _ in range(3):
            # A full collection walks everything the test session holds, which is not the reader's time.
            gc.collect()
            gc.disable()
            try:
                started = time.process_time()
                (conversation,) = read_transcript(path)
                taken.append(time.process_time() - started)
            finally:
                gc.enable()
            assert len(conversation.utterances) == n
        return min(taken)

    seconds(100)
    assert seconds(5000) < 2.0
    assert seconds(20_000) < 8 * max(seconds(5000), 0.02)


# What the formats are made of, a fragment a line.
FRAGMENTS = r"""
WEBVTT
NOTE
STYLE
00:00:01,000 --> 00:00:02,000
01:02.5 --> 00:00:02.500 align:start
-->
<v Joey>
</v>
Joey:
[S 1]:
-
>>
&lt;
&#0;
&#xD800;
<i>
{\an8}
1
2 1
(1,1)
1 | Joey | joy | hi | Friends_S1E1: 00:00:01.0 - 00:00:02.0
1 | Joey | neutral | hi | train_dia1_utt1
SPEAKER a 1 0.5 1 <NA> <NA> s <NA> <NA>
;; no
a A s 1 2
{"conversation_ID": 1, "conversation": [
{"conversation_ID": 2, "emotion-cause_pairs": [
{"utterance_ID": 1, "text": "hi", "emotion": "joy"}
], "emotion-cause_pairs": [
["1_joy", "1"]
"\ud800"
]
}
[
{
,
1e999
NaN
9999999999999999999999999999999
x
""".strip("\n").split("\n")
BREAKS = ["\n", "\n", "\r\n", "\n\n", " ", "\0", "\ufeff", "\x85", "\u2028"]
CONTENTS = st.one_of(
    st.binary(max_size=300),
    st.lists(st.sampled_from(FRAGMENTS + BREAKS), max_size=30).map(lambda parts: "".join(parts).encode()),
    st.lists(st.sampled_from(FRAGMENTS), max_size=15).map(lambda parts: "\n".join(parts).encode()),
)


@settings(max_examples=600, deadline=None)
@given(CONTENTS, st.sampled_from([".srt", ".vtt", ".json", ".txt", ".stm", ".rttm", ""]))
def test_whatever_the_bytes_only_our_errors_come_out(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"fuzz{suffix}"
    path.write_bytes(content)
    messages: list[str] = []
    for read in (read_transcript, read_labelled, read_submission, clip_names):
        try:
            read(path)
        except MechmError as error:
            messages.append(str(error))
    assert all(len(message.encode()) < 300 for message in messages)


LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "1_joy", "1", "\ud800", *EMOTIONS])
)
KEYS = st.sampled_from(["conversation_ID", "conversation", "utterance_ID", "emotion", "emotion-cause_pairs", "start_s"])
DOCUMENTS = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
)
TURNS = st.lists(
    st.fixed_dictionaries(
        {"utterance_ID": st.integers(-1, 3) | DOCUMENTS},
        optional={"text": LEAVES, "emotion": LEAVES, "start_s": LEAVES, "end_s": LEAVES, "video_source": DOCUMENTS},
    )
)
PAIRS = st.lists(st.lists(LEAVES, min_size=2, max_size=2))


@settings(max_examples=200, deadline=None)
@given(
    DOCUMENTS
    | st.fixed_dictionaries({"conversation_ID": LEAVES, "conversation": TURNS}, optional={"emotion-cause_pairs": PAIRS})
)
def test_whatever_the_json_only_our_errors_come_out(tmp_path_factory: pytest.TempPathFactory, document: object) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    messages: list[str] = []
    for read in (read_transcript, read_labelled, read_submission):
        try:
            read(path)
        except MechmError as error:
            messages.append(str(error))
    assert all(len(message.encode()) < 300 for message in messages)


def test_one_conversation_is_read_from_json_text(tmp_path: Path) -> None:
    document = {"conversation_ID": 3, "conversation": [{"utterance_ID": 1, "speaker": "A", "text": "Well."}]}
    path = tmp_path / "one.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    assert (parse_conversation(json.dumps(document), name="request"),) == read_transcript(path)
    with pytest.raises(TranscriptError, match="request: 2 conversations, not one"):
        parse_conversation(json.dumps([document, {**document, "conversation_ID": 4}]), name="request")
    with pytest.raises(TranscriptError, match="not JSON"):
        parse_conversation("Well.", name="request")


# Real files


def data_folder() -> Path:
    folder = os.environ.get("MECHM_DATA")
    if not folder:
        pytest.skip("MECHM_DATA is not set: the folder with data/ecf and media/phone_call.*")
    return Path(folder)


@pytest.mark.parametrize(
    ("name", "n_conversations", "n_utterances", "n_pairs"),
    [
        ("train", 1001, 9966, 7055),
        ("dev", 112, 1087, 866),
        ("test", 261, 2566, 1873),
        ("ecf_vs_meld", 1374, 13_619, 9794),
    ],
)
def test_ecf_has_the_published_sizes(name: str, n_conversations: int, n_utterances: int, n_pairs: int) -> None:
    path = data_folder() / "data" / "ecf" / f"{name}.txt"
    labelled = read_labelled(path)
    assert len(labelled) == n_conversations
    assert sum(len(one.emotions) for one in labelled) == n_utterances
    assert sum(len(one.pairs) for one in labelled) == n_pairs
    timed = name != "ecf_vs_meld"
    assert all((u.start_s is not None) is timed for one in labelled for u in one.conversation.utterances)
    assert len(clip_names(path)) == (0 if timed else 13_389)


def test_the_phone_call() -> None:
    media = data_folder() / "media"
    recording = media / "phone_call.wav"
    (spoken,) = read_transcript(media / "phone_call.stm", media=recording, media_duration_s=30.0)
    assert spoken.utterances[0] == Utterance(1, "Diane", "Hello?", 6.68, 7.16)
    assert len(spoken.utterances) == 13
    (turns,) = read_transcript(media / "phone_call.rttm", media=recording, media_duration_s=30.0)
    assert len(turns.utterances) == 10
    assert {u.text for u in turns.utterances} == {None}

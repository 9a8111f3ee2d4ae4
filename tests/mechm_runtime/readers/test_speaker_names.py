"""Speakers' names before a colon: shapes of names that count, and words before a colon that do not."""

from __future__ import annotations

import time

import pytest

from mechm_runtime.readers.speaker_names import name_lines

NAMES = [
    *(
        "ana",
        "Ana",
        "ANA",
        "MR. SMITH",
        "iPhone",
        "maria",
        "I",
        "Me",
        "You",
        "He",
        "Mom",
        "Q",
        "A",
        "S1",
        "P01",
        "001",
        "1",
    ),
    *(
        "SPEAKER_00",
        "spk_0",
        "Speaker 1",
        "Speaker A",
        "2nd Speaker",
        "Unknown Speaker",
        "HOST 2",
        "user123",
        "Ana_1",
        "???",
    ),
    *("Jan de Vries", "van Gogh", "bin Laden", "de la Cruz", "von der Leyen", "María José García López Ruiz"),
    *("Smith, John", "Poe, Ben", "Ana, CEO", "Dr. O'Neil (host)", "Prof. Dr. Müller", "Lt. Col. Smith", "Sgt. Pepper"),
    *("Ana (she/her)", "Ana (he/him) | Marketing", "Ana | Sales", "Ana Roe - Sales", "Ana [external]", "ben (guest)"),
    *("@ana", "#1", "ana.smith@corp.com", "+49 170 1234567", "Ana 🎉", "🎉", "Ana & Ben", "Ana/Ben", "Student #3"),
    *("O’Brien", "Jean-Luc", "Anne-Marie O'Hara-Smith", "J.R.R. Tolkien", "Ana R.", "Mr. X", "ana maria", "The Doctor"),
    *(
        "Voice of Ana",
        "Man on phone",
        "Interviewer",
        "Анна",
        "Мария Иванова",
        "فاطمة",
        "小明",
        "김민수",
        "田中さん",
        "אנה",
    ),
    *("Nguyễn Thị Minh Khai", "ณัฐ", "अमित", "Σοφία"),
]
SEPARATORS = [": ", ":", " : ", "：", "\u00a0: ", "\t:\t"]
WRITTEN = [
    ("[Ana]: ", "Ana"),
    ("(Ana): ", "Ana"),
    ("**Ana:** ", "Ana"),
    ("*Ana*: ", "Ana"),
    ("【小明】：", "小明"),
    ("[Ana] ", "Ana"),
    ("(Ana Roe) ", "Ana Roe"),
    ("ANA> ", "ANA"),
    ("<Ana>: ", "Ana"),
    ("\u200eAna\u200e: ", "Ana"),
]
NO_NAMES = [
    *(
        "At 10:30 it was over.",
        "It was 10:30: too late.",
        "It's 5: late.",
        "It ended 3:1 for us.",
        "Ratio 1:2:3 it is.",
    ),
    *("I told him: never again.", "I TOLD HIM: NEVER AGAIN.", "He said: no.", 'He said: "no".', "And I said: go."),
    *(
        "The thing is: I quit.",
        "Here's the deal: you go.",
        "What I mean: stop.",
        "She was like: no way.",
        "Let me say this: no.",
    ),
    *(
        "so he goes: what?",
        "you know what: forget it",
        "I have one word: no.",
        "The answer is: 42.",
        "There are two kinds: a, b.",
    ),
    *("Er sagte: nein.", "Elle a dit: non.", "我告诉他：再也不要。", "他说：好。"),
    *("See https://example.org now", "https://example.org: nice", "mailto:ana@example.org", "C:\\temp is full"),
    *("Matthew 5:3 says so.", "std::vector is fine", "x > y is true", "3 > 2 of course", "-> go", "50%: that is a lot"),
    *("I'm happy :) really", "happy:) yes", "ok :D fine", "Wow! Ana: hello", "That was it; Ana: said so"),
    *("[laughter] That is funny", "(sighs) Fine.", "[Music] la la", "[clears throat] So"),
]
REMARKS = [
    *(
        "Remember: no cake.",
        "Note: bring forks.",
        "Warning: hot.",
        "Question: who called?",
        "P.S.: bye.",
        "Fun fact: bees.",
    ),
    *(
        "In short: no.",
        "On the other hand: maybe.",
        "Long story short: we lost.",
        "My point: nobody called.",
        "Yes: go.",
    ),
    *(
        "Step 1: open it.",
        "Chapter 2: the fall.",
        "One thing: do not call.",
        "Here: take it.",
        "and then: boom.",
        "This: never.",
    ),
    *("We need three things: bread, milk and eggs.", '"Never again": that was it.'),
]
PLAIN = ["We won the game.", "That is nice.", "I cannot believe it.", "Ok then."]
NAMED = ["Ana: I passed.", "Ben: Great.", "Ana: Thanks.", "Ben: You are welcome.", "Ana: Bye."]


def named(*lines: str) -> list[tuple[str | None, str]]:
    return [(speaker, words.strip()) for ((speaker, words),) in name_lines([[line] for line in lines]).cues]


@pytest.mark.parametrize("separator", SEPARATORS)
@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_recurs(name: str, separator: str) -> None:
    found = named(f"{name}{separator}Hi there.", "Well, that was it.", "It is true.", f"{name}{separator}Yes.", "Ok.")
    assert found == [
        (name, "Hi there."),
        (None, "Well, that was it."),
        (None, "It is true."),
        (name, "Yes."),
        (None, "Ok."),
    ]


@pytest.mark.parametrize("separator", SEPARATORS)
@pytest.mark.parametrize("name", NAMES)
def test_a_name_used_once_where_most_cues_are_named(name: str, separator: str) -> None:
    lines = [f"Cleo{separator}Great.", f"{name}{separator}Hi there.", f"Dov{separator}Thanks.", f"Cleo{separator}Yes."]
    assert named(*lines) == [("Cleo", "Great."), (name, "Hi there."), ("Dov", "Thanks."), ("Cleo", "Yes.")]


@pytest.mark.parametrize(("written", "name"), WRITTEN)
def test_names_in_brackets_and_emphasis(written: str, name: str) -> None:
    assert named(f"{written}Hi.", f"{written}Yes.", "Cleo: Well.") == [(name, "Hi."), (name, "Yes."), ("Cleo", "Well.")]


@pytest.mark.parametrize("line", [*NO_NAMES, *REMARKS])
def test_words_before_a_colon_that_are_no_name(line: str) -> None:
    for lines in ([line], [line, *PLAIN], [line, *PLAIN, line], [*NAMED[:2], line, *NAMED[2:]]):
        assert (None, line) in named(*lines)
    wrapped = name_lines([*([line] for line in NAMED), ["Ana: And so I thought", line]])
    assert wrapped.cues[-1] == (("Ana", " And so I thought"), (None, line))


@pytest.mark.parametrize("line", NO_NAMES)
def test_sentences_are_no_names_even_where_all_cues_have_them(line: str) -> None:
    assert named(line, line, line) == [(None, line)] * 3


def test_a_list_has_no_speakers() -> None:
    assert named("1: bread", "2: milk", "3: eggs") == [(None, "1: bread"), (None, "2: milk"), (None, "3: eggs")]


def test_questions_and_answers_are_speakers_where_they_alternate() -> None:
    lines = ["Question: Were you there?", "Answer: Yes.", "Question: Alone?", "Answer: Yes."]
    assert [speaker for speaker, _ in named(*lines)] == ["Question", "Answer"] * 2


def test_a_line_inside_a_cue_starts_another_speaker() -> None:
    found = name_lines([["Ana: I passed the exam.", "Jan de Vries: You must be joking."], ["Ana: It is true."]])
    assert [speaker for cue in found.cues for speaker, _ in cue] == ["Ana", "Jan de Vries", "Ana"]
    assert found.notes == ()


def test_a_small_letter_goes_on_with_an_open_sentence() -> None:
    found = name_lines([["Ana: He wanted only one", "thing: peace."], ["Ben: Me too."], ["Ana: Yes."]])
    assert found.cues[0] == (("Ana", " He wanted only one"), (None, "thing: peace."))


def test_voices_decide_where_most_cues_have_one() -> None:
    lines = [["Question: who called?"], ["Question: why?"], ["Ana: it was me."]]
    found = name_lines(lines, voices={"Ana"}, n_voiced=4)
    assert [speaker for cue in found.cues for speaker, _ in cue] == [None, None, "Ana"]


def test_what_stays_ambiguous_is_said_without_names() -> None:
    once = name_lines([["Ana: hi."], ["Well."], ["Good."]])
    assert once.cues[0] == ((None, "Ana: hi."),)
    assert once.notes == (
        "1 line may start with a speaker's name before a colon, which was left in the words; "
        "`--speaker-names prefix` reads it as the speaker",
    )
    all_once = name_lines([["Ana: hi."], ["Ben: hi."], ["Cleo: hi."], ["Well."]])
    assert all_once.notes == (
        "3 names at the start of lines were read as speakers, though none of them recurs; "
        "`--speaker-names none` leaves them in the words",
    )
    assert name_lines([[line] for line in NAMED]).notes == ()


def test_the_user_decides() -> None:
    lines = [["Remember: no cake."], ["Well."], ["At 10:30 it was over."]]
    assert [cue[0][0] for cue in name_lines(lines, "prefix").cues] == ["Remember", None, None]
    assert [cue[0][0] for cue in name_lines([[line] for line in NAMED], "none").cues] == [None] * 5
    assert name_lines(lines, "prefix").notes == ()


@pytest.mark.parametrize(
    "line", ["a " * 500_000, ":" * 500_000, "(" * 500_000, "a:" * 300_000, "*" * 500_000, ">" * 500_000]
)
def test_hostile_lines_take_linear_time(line: str) -> None:
    started = time.perf_counter()
    name_lines([[line], [line]])
    name_lines([[line[:200]]] * 3000)
    assert time.perf_counter() - started < 5

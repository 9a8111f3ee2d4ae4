"""Words by which `name_heads` tells a name before a colon from the start of a sentence or remark."""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


PARTICLES = _words(
    """
    de der den des di da do dos das du del della la le las los el al bin ibn ben bint abu van von vom ten ter zu
    zum zur y e i und and of the & av af o san santa st jr sr ii iii iv phd md ceo cto cfo host guest
    """
)
"""Small words inside names: "Jan de Vries", "Voice of Ana"."""

SUBJECTS = _words(
    """
    i he she it we they you there here what who whom why how where when which i'm he's she's it's we're they're
    you're that's there's here's what's who's how's where's let's i've i'd i'll you've we've
    """
)
"""Words that start a sentence and no name of several words."""

VERBS = _words(
    """
    is are was were be been am isn't aren't wasn't has have had having do does did don't doesn't didn't can
    can't could will would should must might won't wouldn't couldn't shouldn't said says say told tell tells
    asked ask asks thought think thinks know knows knew want wants wanted mean means meant goes went going got
    gets get made make makes gave give gives saw see sees read reads wrote writes replied answered shouted added
    sagte sagt fragte meinte dit dijo dice disse diz detto сказал сказала говорит спросил спросила
    """
)
"""Verbs that show a sentence where they follow another word."""

FUNCTION_WORDS = _words(
    """
    in on at for to by as with from about after before if while because since and but or nor so then also just
    like well now only even again still not never always maybe perhaps please let don't do did a an the my your
    his her its our their this that these those one two three first second third last next another other some
    any every each no all both more most such than until unless though although yes yeah ok okay oh ah hey look
    listen of
    """
)
"""Words that start a phrase ("In short") rather than a name."""

DISCOURSE = _words(
    """
    note notes remember warning reminder caution attention ps p.s nb n.b fact tip hint example conclusion
    summary update spoiler disclaimer question answer listen look okay ok well so yes no but and or then now
    first second third firstly secondly finally lastly next also still however otherwise instead therefore thus
    meanwhile plus again right anyway wait sorry thanks please this that these those here there what why how
    when where which it important result results problem solution reason title subject topic date time place
    location address phone email e-mail website url http https mailto source credit credits music lyrics
    translation subtitles captions breaking bonus total score price cost because
    """
) | {
    "bottom line",
    "fun fact",
    "good news",
    "bad news",
    "long story short",
    "case in point",
    "side note",
    "quick note",
}
"""Words that open a remark: "Note: ..."."""

NUMBERED = _words(
    """
    step chapter part rule lesson day week month year point item number option tip scene act page figure table
    verse level round section slide version episode season volume question answer problem reason fact exercise
    unit task line room article paragraph no no. nr nr. phase
    """
)
"""Things that are numbered: "Step 2: ..."."""

SOUNDS = _words(
    """
    music applause laughter laugh laughs cheers cheering sigh sighs gasp gasps groan groans scoff scoffs chuckle
    chuckles cough coughs cries sobs screams screaming shouts yells whispers sniff sniffs silence pause pauses
    noise noises static beep bleep click clicks inaudible unintelligible indistinct crosstalk foreign ding thud
    crash bang ringing footsteps whistle whistles grunts grunt bell bells thunder wind birds chatter chattering
    murmurs clears snorts musik applaus gelächter música aplausos risas musique applaudissements rires музыка
    аплодисменты смех 音乐 掌声 笑声 音楽 拍手 笑い 음악 박수 웃음
    """
)
"""Descriptions of sounds in brackets, in captions of several languages."""

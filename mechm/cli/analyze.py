"""`mechm analyze`: recordings and transcripts in, emotions and their causes out.

It parses, shows progress and reports what was written. Inputs are read by `options.inputs`, outputs checked and
written by `options.outputs`; the analysis is `mechm_runtime.Pipeline`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mechm.cli.options.pipeline import pipeline_options

if TYPE_CHECKING:
    from mechm.cli.options.outputs import Outputs
    from mechm.cli.options.pipeline import PipelineOptions
    from mechm_runtime.errors import InputError
    from mechm_runtime.media import MediaLimits
    from mechm_runtime.pipeline import Pipeline
    from mechm_runtime.readers.text_file import SpeakerNames
    from mechm_runtime.types import Analysis, Conversation

EXAMPLES = """\b
Examples:
  mechm analyze call.wav --transcript call.stm
  mechm analyze talk.mp4 --transcript talk.srt --report talk.html
  mechm analyze conversation.json
  mechm analyze clips/ --transcript conversation.json
  mechm analyze conversation.json --json - | jq .pairs
"""

INTERRUPTED = 130
"""The exit code that shells report for a command ended by Ctrl-C: 128 and the signal's number."""

MAX_LISTED = 20
"""Failed conversations that are listed; the rest are counted."""

_File = click.Path(path_type=Path)


@click.command(epilog=EXAMPLES)
@click.argument("source", metavar="INPUT", type=_File)
@click.option(
    "--transcript", type=_File, metavar="FILE", help="Who says what and when: SRT, WebVTT, STM, RTTM or JSON."
)
@click.option(
    "--speaker-names",
    type=click.Choice(["auto", "prefix", "none"]),
    default="auto",
    help="Names before a colon in the transcript: `prefix` takes all of them as speakers, `none` leaves them in the "
    "words. Default: those that recur, or that most lines start with.",
)
@pipeline_options
@click.option(
    "--modality",
    "modalities",
    type=click.Choice(["text", "audio", "face", "scene"]),
    multiple=True,
    help="Use only this modality; may be repeated. Default: those that the input has and the model was trained on.",
)
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads. Default: one per core, up to 4.")
@click.option(
    "--limit-duration",
    "limit_duration_s",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Refuse longer recordings. Default: 28800 (8 hours).",
)
@click.option(
    "--deadline-ms",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MS",
    help="Answer each conversation within MS milliseconds: leaves out the Llama first, then scenes, then faces, then "
    "what has not been read when time is over. The table and the JSON (late_ms) say what came late.",
)
@click.option("--json", "json_path", type=_File, metavar="FILE", help="Write JSON; `-` prints it instead of the table.")
@click.option("--vtt", "vtt_path", type=_File, metavar="FILE", help="Write WebVTT subtitles with emotions and causes.")
@click.option("--submission", "submission_path", type=_File, metavar="FILE", help="Write pairs in the SemEval format.")
@click.option("--report", "report_path", type=_File, metavar="FILE", help="Write a report to open in a browser (HTML).")
@click.option("--quiet", "-q", is_flag=True, help="No table, no progress bar: only files, `--json -` and errors.")
def analyze(
    source: Path,
    transcript: Path | None,
    speaker_names: SpeakerNames,
    options: PipelineOptions,
    modalities: tuple[str, ...],
    threads: int | None,
    limit_duration_s: float | None,
    deadline_ms: float | None,
    json_path: Path | None,
    vtt_path: Path | None,
    submission_path: Path | None,
    report_path: Path | None,
    quiet: bool,
) -> None:
    """Find emotions and their causes in a recording or transcript.

    INPUT is one of three:

    \b
    - a recording (any audio or video file, a picture) with its --transcript;
      without one only up to 30 seconds, taken as a single utterance
    - a transcript alone: ECF / SemEval JSON, MECPE text, SRT, WebVTT, STM
    - a folder with one clip per utterance (dia1utt1.mp4 ...) and its --transcript

    A transcript with several conversations is analysed one conversation at a time. A clip or track that is missing or
    cannot be decoded is named below the table; its utterance is analysed from the rest.

    With several conversations, `--json -` and `--json talks.jsonl` have a line for each, `--json talks.json` is a list,
    and `--vtt talks.vtt` becomes a file for each (talks.16.vtt). If some of them cannot be analysed, the others are
    still shown and written, the failed ones are listed at the end, and the exit code is not 0.

    Exit codes: 0 done, 2 bad input or usage, 130 interrupted, 1 anything else. Files are written at the end, whole
    or not at all. Nothing leaves this machine, except the words that go to a server named by --llm-url.
    """
    try:
        from mechm.cli.options.outputs import AnalysisPrinter, Outputs
        from mechm_runtime.media import MediaLimits
        from mechm_runtime.types import MODALITIES

        outputs = Outputs(json=json_path, vtt=vtt_path, submission=submission_path, report=report_path)
        if quiet and not outputs.wanted:
            raise click.UsageError("--quiet shows nothing: give --json, --vtt, --submission or --report with it")
        limits = MediaLimits() if limit_duration_s is None else MediaLimits(max_duration_s=limit_duration_s)
        conversations = read_input(source, transcript, outputs, limits, modalities or MODALITIES, speaker_names)
        if not quiet:
            show_notes(conversations)
        pipeline = options.load(n_threads=threads, modalities=modalities or None, limits=limits)
        show = AnalysisPrinter(outputs, heading=len(conversations) > 1, quiet=quiet)
        analyses, failures = analyze_all(pipeline, conversations, show, quiet=quiet, deadline_ms=deadline_ms)
        title, terms = source.stem or source.resolve().name, pipeline.terms_of_use
        finish(outputs, conversations, analyses, failures, title=title, terms=terms, quiet=quiet)
        show.check()
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        sys.exit(INTERRUPTED)


def read_input(
    source: Path,
    transcript: Path | None,
    outputs: Outputs,
    limits: MediaLimits,
    modalities: Sequence[str],
    speaker_names: SpeakerNames = "auto",
) -> tuple[Conversation, ...]:
    """Read the conversations and check everything that can be refused before the work.

    Raises: InputError and its kinds: the input, an output, or modalities that the input cannot have.
    """
    from mechm.cli.options.inputs import load_conversations
    from mechm_runtime.errors import InputError

    conversations = load_conversations(source, transcript, limits=limits, speaker_names=speaker_names)
    outputs.check(conversations, [source] if transcript is None else [source, transcript])
    has_media = any(c.media is not None or any(u.media for u in c.utterances) for c in conversations)
    if "text" not in modalities and not has_media:
        raise InputError(
            f"a transcript alone has words, but only {' and '.join(modalities)} may be used",
            hint="give the recording as INPUT, or add --modality text",
        )
    return conversations


def show_notes(conversations: Sequence[Conversation]) -> None:
    """Say once what was repaired while the conversations were read."""
    for note in dict.fromkeys(note for conversation in conversations for note in conversation.notes):
        click.echo(f"note: {note}", err=True)


def analyze_all(
    pipeline: Pipeline,
    conversations: Sequence[Conversation],
    show: Callable[[Analysis], None],
    *,
    quiet: bool,
    deadline_ms: float | None = None,
) -> tuple[list[Analysis], list[tuple[Conversation, InputError]]]:
    """Analyse one conversation after the other and show each when it is done.

    deadline_ms: per conversation.
    Returns: the analyses, and the conversations that could not be analysed with the reason.
    Raises: InputError: the only conversation cannot be analysed. Other MechmErrors: no conversation could be.
    """
    from mechm.cli.options.progress import AnalysisProgress
    from mechm_runtime.errors import InputError

    analyses: list[Analysis] = []
    failures: list[tuple[Conversation, InputError]] = []
    with AnalysisProgress(conversations, pipeline.modalities, pipeline.llm, hidden=quiet) as bar:
        for conversation in conversations:
            try:
                analysis = pipeline.analyze(conversation, progress=bar.begin(conversation), deadline_ms=deadline_ms)
            except InputError as error:
                if len(conversations) == 1:
                    raise
                failures.append((conversation, error))
            else:
                analyses.append(analysis)
                with bar.aside():
                    show(analysis)
    return analyses, failures


def finish(
    outputs: Outputs,
    conversations: Sequence[Conversation],
    analyses: Sequence[Analysis],
    failures: Sequence[tuple[Conversation, InputError]],
    *,
    title: str,
    terms: str,
    quiet: bool,
) -> None:
    """Write the files, name them, and list what failed.

    Raises: InputError: a conversation could not be analysed or a file not be written; everything else is done.
    """
    from mechm_runtime.errors import InputError
    from mechm_runtime.output.formatting import count, printable

    written, unwritten = (
        outputs.write(analyses, conversations, title=printable(title), terms=terms) if analyses else ((), ())
    )
    if not quiet:
        for path in written:
            click.echo(f"wrote {path}", err=True)
    for conversation, failure in failures[:MAX_LISTED]:
        click.echo(f"not analysed: {printable(conversation.id)}: {failure}", err=True)
    if len(failures) > MAX_LISTED:
        click.echo(f"not analysed: {len(failures) - MAX_LISTED} more", err=True)
    for problem in unwritten[1:] if not failures else unwritten:
        click.echo(f"not written: {problem}", err=True)
    if failures:
        raise InputError(
            f"{len(failures)} of {count(len(conversations), 'conversation')} could not be analysed",
            hint=next((failure.hint for _, failure in failures if failure.hint), ""),
        )
    if unwritten:
        raise unwritten[0]

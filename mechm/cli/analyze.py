"""`mechm analyze`: recordings and transcripts in, emotions and their causes out.

It parses, shows and says what was written; what an input is and whether an output can be written is decided in
`inputs` and `outputs`, the analysis is `mechm_runtime.Pipeline`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mechm.cli.options.engine import engine_option
from mechm.cli.options.llm import llm_options

if TYPE_CHECKING:
    from rich.progress import Progress

    from mechm.cli.options.outputs import Outputs
    from mechm_runtime.bundle.precision import EngineName
    from mechm_runtime.engines.base import EngineConfig
    from mechm_runtime.errors import InputError
    from mechm_runtime.llm.rescoring import Llm
    from mechm_runtime.llm.vllm.config import ServerConfig
    from mechm_runtime.media import MediaLimits
    from mechm_runtime.pipeline import Pipeline, Precision
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
"""What shells report for a command that Ctrl-C ended: 128 and the signal's number."""

STAGES = {"text": 1, "media": 10, "fusion": 1, "llm": 10}
"""The pipeline's stages in their order, with how long an utterance takes in each, roughly and in proportion."""

MAX_LISTED = 20
"""Failed conversations that are listed; the rest are counted."""

_File = click.Path(path_type=Path)


@click.command(epilog=EXAMPLES)
@click.argument("source", metavar="INPUT", type=_File)
@click.option(
    "--transcript", type=_File, metavar="FILE", help="Who says what, and when: SRT, WebVTT, STM, RTTM or JSON."
)
@click.option(
    "--bundle",
    type=_File,
    metavar="DIR",
    help="Analyse with this bundle. Default: the one that `make demo` built, or MECHM_BUNDLE.",
)
@click.option("--precision", type=click.Choice(["fp32", "int8"]), help="Which of the bundle's precisions to run.")
@engine_option
@llm_options
@click.option(
    "--modality",
    "modalities",
    type=click.Choice(["text", "audio", "face", "scene"]),
    multiple=True,
    help="Use only this one; may be given several times. Default: what the input has and the weights learned to read.",
)
@click.option(
    "--threads", type=click.IntRange(min=1), metavar="N", help="Threads to compute with. Default: up to four."
)
@click.option(
    "--limit-duration",
    "limit_duration_s",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Refuse recordings that last longer. Default: 28800 (8 hours).",
)
@click.option(
    "--deadline-ms",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MS",
    help="Answer each conversation in this time where possible: leaves out the Llama first, then scenes, then faces.",
)
@click.option("--json", "json_path", type=_File, metavar="FILE", help="Write JSON; `-` prints it instead of the table.")
@click.option("--vtt", "vtt_path", type=_File, metavar="FILE", help="Write WebVTT subtitles with emotions and causes.")
@click.option("--submission", "submission_path", type=_File, metavar="FILE", help="Write the pairs in SemEval's form.")
@click.option("--report", "report_path", type=_File, metavar="FILE", help="Write a page to look at (HTML).")
@click.option("--quiet", "-q", is_flag=True, help="No table, no progress bar: only files, `--json -` and errors.")
def analyze(
    source: Path,
    transcript: Path | None,
    bundle: Path | None,
    precision: Precision | None,
    engine: EngineName,
    llm: Llm | None,
    asked_below: float | None,
    server: ServerConfig | None,
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
    - a folder with a clip per utterance (dia1utt1.mp4 ...) and its --transcript

    A transcript of many conversations is analysed conversation by conversation. A clip or track that is missing or
    cannot be decoded is named below the table, and its utterance is analysed from what else there is.

    Several conversations: JSON becomes a line each, `--vtt talks.vtt` a file each (talks.16.vtt). If some of them
    cannot be analysed, the others are shown and written all the same, the failed ones are listed at the end, and the
    exit code is not 0.

    Exit codes: 0 done, 2 bad input or usage, 130 interrupted, 1 anything else. Files are written at the end, whole
    or not at all. Nothing leaves this machine, but the words for a server elsewhere that --llm-url names.
    """
    try:
        from mechm.cli.options.outputs import Outputs
        from mechm_runtime.engines.base import EngineConfig
        from mechm_runtime.media import MediaLimits
        from mechm_runtime.types import MODALITIES

        outputs = Outputs(json=json_path, vtt=vtt_path, submission=submission_path, report=report_path)
        if quiet and not outputs.wanted:
            raise click.UsageError("--quiet shows nothing: give --json, --vtt, --submission or --report with it")
        limits = MediaLimits() if limit_duration_s is None else MediaLimits(max_duration_s=limit_duration_s)
        conversations = read_input(source, transcript, outputs, limits, modalities or MODALITIES)
        config = EngineConfig(n_threads=threads or 0, engine=engine)
        pipeline = load_pipeline(bundle, precision, config, llm, asked_below, server, modalities or None, limits)
        show = Printer(outputs, heading=len(conversations) > 1, quiet=quiet)
        analyses, failures = analyze_all(pipeline, conversations, show, quiet=quiet, deadline_ms=deadline_ms)
        finish(outputs, conversations, analyses, failures, title=source.stem or source.resolve().name, quiet=quiet)
        show.check()
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        sys.exit(INTERRUPTED)


def read_input(
    source: Path, transcript: Path | None, outputs: Outputs, limits: MediaLimits, modalities: Sequence[str]
) -> tuple[Conversation, ...]:
    """The conversations to analyse, after everything that can be refused before the work has been looked at.

    Raises: InputError and its kinds: the input, an output, or modalities that the input cannot have.
    """
    from mechm.cli.options.inputs import load_conversations
    from mechm_runtime.errors import InputError

    conversations = load_conversations(source, transcript, limits=limits)
    outputs.check(conversations, [source] if transcript is None else [source, transcript])
    has_media = any(c.media is not None or any(u.media for u in c.utterances) for c in conversations)
    if "text" not in modalities and not has_media:
        raise InputError(
            f"a transcript alone has words, but only {' and '.join(modalities)} may be used",
            hint="give the recording as INPUT, or add --modality text",
        )
    return conversations


def load_pipeline(
    bundle: Path | None,
    precision: Precision | None,
    engine: EngineConfig,
    llm: Llm | None,
    asked_below: float | None,
    server: ServerConfig | None,
    modalities: Sequence[str] | None,
    limits: MediaLimits,
) -> Pipeline:
    """The pipeline as the options say.

    Raises: BundleError, ProviderError, MissingExtraError, LlmUnavailableError.
    """
    from mechm_runtime.pipeline import Pipeline

    return Pipeline.from_bundle(
        bundle,
        precision=precision,
        engine=engine,
        modalities=modalities,
        limits=limits,
        llm=llm,
        server=server,
        asked_below=asked_below,
    )


def analyze_all(
    pipeline: Pipeline,
    conversations: Sequence[Conversation],
    show: Callable[[Analysis], None],
    *,
    quiet: bool,
    deadline_ms: float | None = None,
) -> tuple[list[Analysis], list[tuple[Conversation, InputError]]]:
    """Analyse one conversation after the other, showing each when it is done.

    deadline_ms: of each.
    Returns: the analyses, and the conversations that could not be analysed with the reason.
    Raises: InputError: the only conversation cannot be analysed. Other MechmErrors: nothing could be, whatever it is.
    """
    from mechm_runtime.errors import InputError

    analyses: list[Analysis] = []
    failures: list[tuple[Conversation, InputError]] = []
    with Bar(conversations, pipeline.modalities, pipeline.llm, hidden=quiet) as bar:
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


class Printer:
    """Puts analyses on standard output: as tables, as lines of JSON, or not at all.

    Where standard output gives up (a full disk, `| head`) the analyses may still go to files: what happened is kept
    for `check`, and raised at once only where there are no files to write.
    """

    def __init__(self, outputs: Outputs, *, heading: bool, quiet: bool) -> None:
        """`heading`: name the conversation above its table."""
        self._as_json = outputs.json_to_stdout
        self._silent = quiet and not self._as_json
        self._heading = heading
        self._has_files = outputs.has_files
        self._failure: OSError | None = None

    def __call__(self, analysis: Analysis) -> None:
        """Print one analysis."""
        if self._silent or self._failure is not None:
            return
        try:
            if self._as_json:
                click.echo(analysis.to_json().encode("utf-8", errors="backslashreplace"))
            else:
                self._table(analysis)
        except OSError as error:
            self._failure = error
            if not self._has_files:
                self.check()

    def check(self) -> None:
        """Raise what printing failed with, if it did.

        Raises: MechmError; or BrokenPipeError, on which click ends quietly: the pipe's reader has seen enough.
        """
        from mechm_runtime.errors import MechmError

        if isinstance(self._failure, BrokenPipeError):
            raise self._failure
        if self._failure is not None:
            raise MechmError(
                f"cannot print: {self._failure.strerror or self._failure}", hint="write to a file: --json FILE"
            ) from self._failure

    def _table(self, analysis: Analysis) -> None:
        from mechm_runtime.output.formatting import printable
        from mechm_runtime.output.table import render_table

        text = render_table(analysis)
        if self._heading:
            text = f"Conversation {printable(analysis.conversation_id)}\n{text}"
        # Where the terminal's encoding has no arrows, question marks are better than no table.
        encoding = sys.stdout.encoding or "utf-8"
        click.echo(text.encode(encoding, errors="replace").decode(encoding), nl=self._heading)


def finish(
    outputs: Outputs,
    conversations: Sequence[Conversation],
    analyses: Sequence[Analysis],
    failures: Sequence[tuple[Conversation, InputError]],
    *,
    title: str,
    quiet: bool,
) -> None:
    """Write the files, say where they are, and list what failed.

    Raises: InputError: a conversation could not be analysed or a file not be written; everything else is done.
    """
    from mechm_runtime.errors import InputError
    from mechm_runtime.output.formatting import count, printable

    written, unwritten = outputs.write(analyses, conversations, title=printable(title)) if analyses else ((), ())
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


class Bar:
    """A progress bar over all conversations, on standard error and only where that is a terminal.

    It counts an utterance in each stage that it will go through, so that it also moves inside a long conversation.
    """

    def __init__(
        self, conversations: Sequence[Conversation], modalities: Sequence[str], llm: Llm, *, hidden: bool
    ) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        self._shown = console.is_terminal and not hidden
        self._progress: Progress = Progress(*columns, console=console, transient=True, disable=not self._shown)
        self._with_text = "text" in modalities
        self._with_llm = llm != "none"
        self._with_media = tuple(modalities) != ("text",)
        self._n_conversations = len(conversations)
        self._n_begun = 0
        self._end = 0
        total = sum(sum(self._stages(conversation).values()) for conversation in conversations)
        self._task = self._progress.add_task("Analysing", total=total)

    def __enter__(self) -> Bar:
        if self._shown:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._progress.stop()

    def begin(self, conversation: Conversation) -> Callable[[str, int, int], None]:
        """Start on the next conversation; returns what the pipeline reports to."""
        stages = self._stages(conversation)
        start = self._end
        self._end += sum(stages.values())
        self._n_begun += 1
        where = f" {self._n_begun} of {self._n_conversations}" if self._n_conversations > 1 else ""
        self._progress.update(self._task, completed=start, description=f"Analysing{where}")

        def report(stage: str, n_done: int, n_total: int) -> None:
            if stage in stages:
                names = list(stages)
                before = sum(stages[name] for name in names[: names.index(stage)])
                self._progress.update(self._task, completed=start + before + stages[stage] * n_done / max(n_total, 1))

        return report

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Take the bar away while something is printed: both may go to the same terminal."""
        if self._shown:
            self._progress.stop()
        try:
            yield
        finally:
            if self._shown:
                self._progress.start()

    def _stages(self, conversation: Conversation) -> dict[str, int]:
        """The stages that this conversation goes through, and the bar's length of each."""
        has_media = conversation.media is not None or any(u.media is not None for u in conversation.utterances)
        stages = dict(STAGES)
        if not self._with_text:
            del stages["text"]
        if not (self._with_media and has_media):
            del stages["media"]
        if not self._with_llm:
            del stages["llm"]
        return {stage: units * len(conversation.utterances) for stage, units in stages.items()}

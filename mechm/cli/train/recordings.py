"""What `mechm train fusion` knows of recordings: their options, and how long reading them takes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mechm.cli.options.progress import TimedLines, duration
from mechm_runtime.system.progress import StageProgress

if TYPE_CHECKING:
    from mechm.data.corpora import SemaineConfig

MAX_JOBS = 4
"""Decoding processes unless more are asked for: the encoders are busy with what these deliver."""

_folder = click.Path(path_type=Path, exists=True, file_okay=False)
_file = click.Path(path_type=Path, exists=True, dir_okay=False)

_OPTIONS = (
    click.option(
        "--clips",
        type=_folder,
        metavar="DIR",
        help="A clip per utterance of --train and --dev: dia1utt1.mp4, the video_name of ECF 2.0, or MELD.Raw.",
    ),
    click.option(
        "--clip-names",
        "names_file",
        type=_file,
        metavar="FILE",
        help="For ECF 1.0 with the clips of MELD: ecf_vs_meld.txt, which names them.",
    ),
    click.option("--semaine", type=_folder, metavar="DIR", help="Add SEMAINE: the folder with Sessions/1 …"),
    click.option(
        "--semaine-labels",
        "semaine_file",
        type=_file,
        metavar="FILE",
        help='How its valence and activation become emotions, as JSON: {"neutral_radius": 0.2, "reaction_lag_s": 2}.',
    ),
    click.option("--aesi", type=_folder, metavar="DIR", help="Add the voices of AESI: folders and a labels.csv."),
    click.option(
        "--features",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help="Keep what is read out of recordings here, to go on from or use again. Default: in the cache folder.",
    ),
    click.option(
        "--jobs",
        "n_jobs",
        type=click.IntRange(min=1),
        metavar="N",
        help=f"Recordings decoded at once. Default: one a core, {MAX_JOBS} at most.",
    ),
)


@dataclass(frozen=True, slots=True)
class RecordingOptions:
    """The options as they were given; names as in `mechm.data.training_data.TrainingSources`."""

    clips: Path | None = None
    names_file: Path | None = None
    semaine: Path | None = None
    semaine_labels: SemaineConfig | None = None
    aesi: Path | None = None
    features: Path | None = None
    n_jobs: int = 1


def recording_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of recordings to a command, which gets them as one argument `recordings`."""

    @functools.wraps(command)
    def with_recordings(
        *,
        clips: Path | None,
        names_file: Path | None,
        semaine: Path | None,
        semaine_file: Path | None,
        aesi: Path | None,
        features: Path | None,
        n_jobs: int | None,
        **arguments: Any,
    ) -> None:
        from mechm.data.corpora import read_semaine_config
        from mechm_runtime.system.cores import usable_cores

        labels = None if semaine_file is None else read_semaine_config(semaine_file)
        jobs = n_jobs or max(1, min(MAX_JOBS, int(usable_cores())))
        options = RecordingOptions(clips, names_file, semaine, labels, aesi, features, jobs)
        command(recordings=options, **arguments)

    for option in reversed(_OPTIONS):
        with_recordings = option(with_recordings)
    return with_recordings


@contextmanager
def recordings_progress(*, shown: bool = True) -> Iterator[StageProgress]:
    """A callback for recordings read and their number: a bar on a terminal, else a line about every minute; on stderr.

    shown: False for silence, in processes other than the main one.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if not shown:
        yield lambda _done, _total: None
    elif not console.is_terminal:
        yield RecordingLines(lambda line: click.echo(line, err=True))
    else:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("reading recordings"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("", total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)


class RecordingLines(TimedLines):
    """Says how many recordings are read, about every minute."""

    _first: int | None = None

    def __call__(self, done: int, total: int) -> None:
        """Say a line when it is time; what was there before tells nothing about the speed."""
        if self._first is None:
            self._first = done
        if not self.due() or done == self._first:
            return
        left_s = (total - done) * self.seconds / (done - self._first)
        self.say(f"recordings {done}/{total} ({100 * done // total} %), {duration(left_s)} left")

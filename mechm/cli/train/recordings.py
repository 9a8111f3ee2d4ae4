"""Options of `mechm train` about recordings, and the progress of reading them."""

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
    from mechm.data.training_data import TrainingSources
    from mechm.training.modalities import RecordingsConfig

MAX_JOBS = 4
"""Default limit of decoding processes: these keep the encoders busy."""

_folder = click.Path(path_type=Path, exists=True, file_okay=False)
_file = click.Path(path_type=Path, exists=True, dir_okay=False)

_OPTIONS = (
    click.option(
        "--clips",
        type=_folder,
        metavar="DIR",
        help="Clips of the utterances of --train and --dev: dia1utt1.mp4, ECF 2.0's video_name, or MELD.Raw.",
    ),
    click.option(
        "--clip-names",
        "names_file",
        type=_file,
        metavar="FILE",
        help="For ECF 1.0 with the clips of MELD: ecf_vs_meld.txt, which contains their names.",
    ),
    click.option("--semaine", type=_folder, metavar="DIR", help="Add SEMAINE: the folder with Sessions/1 …"),
    click.option(
        "--semaine-labels",
        "semaine_file",
        type=_file,
        metavar="FILE",
        help='JSON that maps its valence and activation to emotions: {"neutral_radius": 0.2, "reaction_lag_s": 2}.',
    ),
    click.option("--aesi", type=_folder, metavar="DIR", help="Add the voices of AESI: folders and a labels.csv."),
    click.option(
        "--features",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help="Folder for the features of recordings, to reuse or continue. Default: in the cache folder.",
    ),
    click.option(
        "--jobs",
        "n_jobs",
        type=click.IntRange(min=1),
        metavar="N",
        help=f"Recordings decoded in parallel. Default: one per core, {MAX_JOBS} at most.",
    ),
)


@dataclass(frozen=True, slots=True)
class RecordingOptions:
    """Values of the options; names as in `mechm.data.training_data.TrainingSources`."""

    clips: Path | None = None
    names_file: Path | None = None
    semaine: Path | None = None
    semaine_labels: SemaineConfig | None = None
    aesi: Path | None = None
    features: Path | None = None
    n_jobs: int = 1

    def sources(
        self, train: Path, dev: Path, *, goemotions: Path | None = None, reccon: Path | None = None
    ) -> TrainingSources:
        """Return the corpora to train on, recordings and text."""
        from mechm.data.training_data import TrainingSources

        return TrainingSources(
            train,
            dev,
            self.clips,
            self.names_file,
            goemotions,
            reccon,
            self.semaine,
            self.semaine_labels,
            self.aesi,
        )

    def config(self, speech: Path | None) -> RecordingsConfig:
        """Return how recordings are read, with a folder of emotional speech."""
        from mechm.training.modalities import RecordingsConfig

        return RecordingsConfig(speech, self.features, self.n_jobs)


def recording_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of recordings to a command, which receives them as one argument `recordings`."""

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
def recordings_progress() -> Iterator[StageProgress]:
    """Yield a callback for recordings read and their total: a bar on a terminal, else a line per minute; on stderr."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield RecordingLines(lambda line: click.echo(line, err=True))
    else:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("reading recordings"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("", total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)


class RecordingLines(TimedLines):
    """Prints how many recordings were read, about every minute."""

    _first: int | None = None

    def __call__(self, done: int, total: int) -> None:
        """Print a line when it is due; recordings that were stored before do not count for the speed."""
        if self._first is None:
            self._first = done
        if not self.due() or done == self._first:
            return
        left_s = (total - done) * self.seconds / (done - self._first)
        self.say(f"recordings {done}/{total} ({100 * done // total} %), {duration(left_s)} left")

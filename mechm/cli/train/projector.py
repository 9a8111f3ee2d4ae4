"""`mechm train projector`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mechm.cli.train.modalities import gather_evidence
from mechm.cli.train.options import adapter_options, check_out, epoch_line, loop_options, training_processes
from mechm.cli.train.recordings import RecordingOptions, recording_options

if TYPE_CHECKING:
    from mechm.training.loop import DevScores, EpochReport, LoopConfig

_file = click.Path(path_type=Path)
_folder = click.Path(path_type=Path, exists=True, file_okay=False)


@click.command()
@loop_options
@adapter_options
@click.option("--train", "train_file", type=_file, required=True, metavar="FILE", help="ECF, or a table of MELD.")
@click.option("--dev", "dev_file", type=_file, required=True, metavar="FILE", help="Decides which epoch is kept.")
@recording_options
@click.option("--speech", type=_folder, metavar="DIR", help="Voices for the texts, as for mechm train fusion.")
@click.option("--conversations", type=click.IntRange(min=1), metavar="N", help="Learn from N of them, drawn at random.")
@click.option("--tokens", "n_tokens", type=click.IntRange(min=1), default=2, show_default=True, help="An utterance's.")
@click.option("--epochs", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--lr", type=click.FloatRange(min=0, min_open=True), default=2e-3, show_default=True)
@click.option("--max-tokens", type=click.IntRange(min=1), default=1600, show_default=True, help="Padded tokens a step.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. Default: torch's own choice.")
def projector(
    preset: str,
    adapter: Path,
    fusion_folder: Path | None,
    base: Path | None,
    train_file: Path,
    dev_file: Path,
    speech: Path | None,
    conversations: int | None,
    n_tokens: int,
    epochs: int,
    lr: float,
    max_tokens: int,
    seed: int,
    threads: int | None,
    loop: LoopConfig,
    recordings: RecordingOptions,
) -> None:
    """Let the Llama hear and see: train soft tokens from the fusion's reading of voices, faces and frames.

    Neither the Llama nor the fusion changes, nor what they answer to words alone. Writes ADAPTER/projector, which
    mechm export bundle takes along. Train it again when either has changed.

    \b
    mechm train projector --adapter runs/llm --fusion runs/fusion --train ecf/train.txt --dev ecf/dev.txt \\
        --speech emodb
    """
    import numpy as np
    import torch

    from mechm.cli.options.progress import training_progress
    from mechm.data.training_data import TrainingSources, load_training_data
    from mechm.llm.projection import Projection
    from mechm.llm.scorer import AnswerScores, load_merged
    from mechm.llm.stored_projector import PROJECTOR_FOLDER, ProjectorOrigin, save_projector
    from mechm.model.build import build_network, load_trained, pretrained_folder
    from mechm.model.config import preset_config
    from mechm.model.projector import ProjectorConfig, SoftTokenProjector
    from mechm.model.transformers_output import quiet_transformers
    from mechm.training.card import NO_VOICE, make_card
    from mechm.training.checkpoint import discard_checkpoint
    from mechm.training.projector import ProjectorTrainingConfig, train_projector
    from mechm.training.stages import Stage
    from mechm.weights import weights_path
    from mechm_runtime.bundle.config import QuestionConfig
    from mechm_runtime.llm.questions import QuestionTokenizer

    out = adapter / PROJECTOR_FOLDER
    with training_processes(out) as accelerator:
        if threads is not None:
            torch.set_num_threads(threads)
        main = accelerator.is_main_process
        if not check_out(out, resume=loop.resume, accelerator=accelerator):
            return
        trained = fusion_folder or pretrained_folder(preset)
        origin = ProjectorOrigin.of(trained, adapter)
        config = preset_config(preset)
        data = load_training_data(
            TrainingSources(
                train_file,
                dev_file,
                recordings.clips,
                recordings.names_file,
                semaine=recordings.semaine,
                semaine_labels=recordings.semaine_labels,
                aesi=recordings.aesi,
            ),
            max_utterances=config.fusion.window,
        )
        corpora = dict(data.corpora)
        if conversations is not None:
            drawn = np.random.default_rng(seed).permutation(len(corpora[data.target]))[:conversations]
            corpora[data.target] = tuple(corpora[data.target][index] for index in sorted(drawn.tolist()))
        stages = (Stage("projector", (data.target, *(name for name in corpora if name != data.target)), epochs),)
        training = ProjectorTrainingConfig(stages, seed=seed, max_tokens=max_tokens, learning_rate=lr)
        evidence = gather_evidence(
            config, data, speech, recordings, training.evidence, accelerator, n_copies=0, seed=seed
        )
        for note in (*data.notes, None if evidence.heard else NO_VOICE):
            if main and note is not None:
                click.echo(f"note: {note}", err=True)
        network = build_network(config, None if preset == "tiny" else weights_path("text", preset))
        load_trained(network, trained)
        folder = weights_path("llm", preset) if base is None else base
        tokenizer = QuestionTokenizer(folder / "tokenizer.json", QuestionConfig(soft_tokens=n_tokens))
        with quiet_transformers():
            scores = AnswerScores(load_merged(folder, adapter).to(torch.bfloat16), tokenizer)
        words = scores.causal.get_input_embeddings().weight[scores.emotion_answers]
        sizes = ProjectorConfig(n_tokens, config.fusion.hidden_size, scores.hidden_size)
        projection = Projection(network.fusion, config.text.hidden_size, SoftTokenProjector(sizes, words))
        card = make_card(
            preset,
            corpora,
            evidence.n_recordings,
            training,
            speech=evidence.spoken_in,
            recorded=None if evidence.recorded is None else evidence.recorded.counts,
        )

        def keep(report: EpochReport, dev: DevScores, record: dict[str, Any]) -> None:
            reached = {"weighted_f1": round(dev.weighted_f1, 4), "emotion_accuracy": round(dev.emotion_accuracy, 4)}
            described = card | {"epoch": report.epoch, "scores": {dev_file.name: reached}, "run": record}
            save_projector(projection.projector, origin, described, out)

        with training_progress(shown=main) as (on_step, say):
            train_projector(
                scores,
                projection,
                tokenizer,
                corpora,
                data.dev,
                evidence.source,
                training,
                out,
                origin,
                keep,
                on_step,
                lambda report: say(epoch_line(report)),
                loop,
            )
        if main:
            discard_checkpoint(out)
            click.echo(f"wrote {out}")

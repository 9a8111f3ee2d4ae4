"""`mechm train fusion`, and the group it shares with `mechm train llm`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mechm.cli.train.combination import combination
from mechm.cli.train.llm import llm
from mechm.cli.train.modalities import gather_evidence
from mechm.cli.train.options import check_out, epoch_line, loop_options, score_line, training_processes
from mechm.cli.train.projector import projector
from mechm.cli.train.recordings import RecordingOptions, recording_options

if TYPE_CHECKING:
    from mechm.data.training_data import RecordedEvidence
    from mechm.model.network import Network
    from mechm.training.loop import LoopConfig
    from mechm_runtime.modalities.text_windows import ConversationTokenizer
    from mechm_runtime.types import LabelledConversation

_folder = click.Path(path_type=Path, exists=True, file_okay=False)
_file = click.Path(path_type=Path)


@click.group()
def train() -> None:
    """Train the fusion and its heads, or the Llama's adapter; let it hear and see, and weigh the two."""


train.add_command(llm)
train.add_command(projector)
train.add_command(combination)


@train.command()
@loop_options
@click.option("--preset", type=click.Choice(["small", "tiny", "llama2-7b"]), default="small", show_default=True)
@click.option("--train", "train_file", type=_file, required=True, metavar="FILE", help="ECF, or a table of MELD.")
@click.option("--dev", "dev_file", type=_file, required=True, metavar="FILE", help="Decides which weights are kept.")
@click.option("--report", "reports", type=_file, multiple=True, metavar="FILE", help="Score at the end, for the card.")
@recording_options
@click.option("--goemotions", type=_folder, metavar="DIR", help="Warm the text encoder up on GoEmotions (train.tsv).")
@click.option("--comments", type=click.IntRange(min=1), metavar="N", help="Of GoEmotions, at most. Default: all.")
@click.option("--reccon", type=_folder, metavar="DIR", help="Add RECCON's DailyDialog dialogues, train split.")
@click.option(
    "--speech",
    type=_folder,
    metavar="DIR",
    help="Teach the voice with recordings named as EmoDB's (03a01Fa.wav ...) or listed in a labels.csv.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Where the weights go.")
@click.option("--warmup-epochs", type=click.IntRange(min=0), default=1, show_default=True, help="On GoEmotions.")
@click.option(
    "--pair-epochs",
    type=click.IntRange(min=0),
    default=2,
    show_default=True,
    help="With RECCON, SEMAINE.",
)
@click.option("--epochs", type=click.IntRange(min=1), default=4, show_default=True, help="On --train alone.")
@click.option("--text-lr", type=click.FloatRange(min=0, min_open=True), default=6e-4, show_default=True)
@click.option("--fusion-lr", type=click.FloatRange(min=0, min_open=True), default=5e-4, show_default=True)
@click.option(
    "--max-tokens", type=click.IntRange(min=1), default=1400, show_default=True, help="Padded tokens a batch."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. Default: torch's own choice.")
def fusion(
    preset: str,
    train_file: Path,
    dev_file: Path,
    reports: tuple[Path, ...],
    goemotions: Path | None,
    comments: int | None,
    reccon: Path | None,
    speech: Path | None,
    out: Path,
    warmup_epochs: int,
    pair_epochs: int,
    epochs: int,
    text_lr: float,
    fusion_lr: float,
    max_tokens: int,
    seed: int,
    threads: int | None,
    loop: LoopConfig,
    recordings: RecordingOptions,
) -> None:
    """Train the text encoder, the fusion and both heads; keep the weights that score best on --dev.

    \b
    mechm train fusion --train ecf/train.txt --dev ecf/dev.txt --out runs/closed
    mechm train fusion --train ecf/train.txt --dev ecf/dev.txt --report ecf/test.txt \\
        --goemotions goemotions --reccon reccon --speech emodb --out runs/open
    mechm train fusion --train ecf/train.txt --dev ecf/dev.txt --clips MELD.Raw --clip-names ecf/ecf_vs_meld.txt \\
        --out runs/clips
    torchrun --nproc-per-node 2 --no-python mechm train fusion --train ecf/train.txt ...
    """
    from dataclasses import asdict

    import torch

    from mechm.cli.options.progress import training_progress
    from mechm.data.training_data import TrainingSources, load_training_data
    from mechm.model.build import build_network
    from mechm.model.config import preset_config
    from mechm.training.card import NO_VOICE, make_card, unseen_note
    from mechm.training.fusion import FusionTrainingConfig, train_fusion
    from mechm.training.speech import N_COPIES, standardise_audio
    from mechm.training.stages import Stage, balanced
    from mechm.training.voice_head import VoiceConfig, check_speech, fit_voice
    from mechm.weights import weights_path
    from mechm_runtime.bundle.config import TextConfig
    from mechm_runtime.modalities.text_windows import ConversationTokenizer
    from mechm_runtime.readers import read_labelled

    with training_processes(out) as accelerator:
        if threads is not None:
            torch.set_num_threads(threads)
        main = accelerator.is_main_process
        if not check_out(out, resume=loop.resume, accelerator=accelerator):
            return
        config = preset_config(preset)
        text_folder = weights_path("text", "small" if preset == "tiny" else preset)
        window = config.text.max_tokens
        tokenizer = ConversationTokenizer(text_folder / "tokenizer.json", TextConfig(window, window // 4))
        sources = TrainingSources(
            train_file,
            dev_file,
            recordings.clips,
            recordings.names_file,
            goemotions,
            reccon,
            recordings.semaine,
            recordings.semaine_labels,
            recordings.aesi,
        )
        data = load_training_data(sources, max_utterances=config.fusion.window)
        corpora = dict(data.corpora)
        if "goemotions" in corpora and comments is not None:
            corpora["goemotions"] = balanced(corpora["goemotions"], comments, seed)
        held_out = {dev_file.name: data.dev, **{path.name: read_labelled(path) for path in reports}}
        stages = [Stage("target", (data.target,), epochs)]
        dialogues = tuple(name for name in ("reccon", "semaine") if name in corpora)
        if dialogues and pair_epochs:
            stages.insert(0, Stage("pairs", (data.target, *dialogues), pair_epochs))
        if "goemotions" in corpora and warmup_epochs:
            stages.insert(0, Stage("warm-up", ("goemotions",), warmup_epochs))
        training = FusionTrainingConfig(
            tuple(stages), seed=seed, max_tokens=max_tokens, text_lr=text_lr, fusion_lr=fusion_lr
        )
        evidence = gather_evidence(
            config, data, speech, recordings, training.evidence, accelerator, n_copies=N_COPIES, seed=seed
        )
        recorded, features = evidence.recorded, evidence.speech
        if features is not None:
            check_speech(features)
        for note in (*data.notes, None if evidence.heard else NO_VOICE, unseen_note(corpora[data.target])):
            if main and note is not None:
                click.echo(f"note: {note}", err=True)
        card = make_card(
            preset,
            corpora,
            evidence.n_recordings,
            training,
            speech=evidence.spoken_in,
            recorded=None if recorded is None else recorded.counts,
        )
        network = build_network(config, None if preset == "tiny" else text_folder, seed=seed)
        heard = {} if recorded is None or not len(recorded.table.voices) else {"recordings": recorded.table.voices}
        if features is not None:
            voice = VoiceConfig()
            card["voice"] = {**asdict(voice), "temperature": fit_voice(network.fusion, features, voice)}
            # Voices of other people's texts are for the voice head alone; the texts' own are worth attending to.
            network.fusion.audio_attended.fill_(bool(heard))
        elif heard:
            standardise_audio(network.fusion, heard)
        with training_progress(shown=main) as (on_step, say):
            train_fusion(
                network,
                tokenizer,
                corpora,
                held_out[dev_file.name],
                evidence.source,
                training,
                out,
                card,
                on_step,
                lambda report: say(epoch_line(report)),
                loop,
                None if recorded is None else recorded.source,
            )
        if main:
            _report(network, tokenizer, held_out, out, recorded, dev_file.name)


def _report(
    network: Network,
    tokenizer: ConversationTokenizer,
    held_out: dict[str, tuple[LabelledConversation, ...]],
    out: Path,
    recorded: RecordedEvidence | None,
    dev: str,
) -> None:
    """Score the weights that were kept, write the scores into their card, and end the training."""
    import json

    from mechm.model.build import CARD_FILE, load_trained, save_trained
    from mechm.training.card import split_scores
    from mechm.training.checkpoint import discard_checkpoint
    from mechm.training.fusion import score_conversations

    decision = load_trained(network, out)
    card = json.loads((out / CARD_FILE).read_text(encoding="utf-8"))
    for name, labelled in held_out.items():
        card["scores"][name] = split_scores(labelled, score_conversations(network, tokenizer, labelled), decision)
        click.echo(score_line(name, card["scores"][name], "text only"))
    if recorded is not None:
        scored = score_conversations(network, tokenizer, held_out[dev], recorded.source)
        found = split_scores(held_out[dev], scored, decision, "text, audio, face, scene")
        card["scores"][f"{dev}, recordings"] = found
        click.echo(score_line(dev, found, "text and recordings"))
        if n_unusable := len(recorded.table.problems):
            click.echo(f"{n_unusable} recordings could not be used, see above", err=True)
    save_trained(network, decision, card, out)
    discard_checkpoint(out)
    click.echo(f"wrote {out}")

"""`mechm train llm`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mechm.cli.train.options import check_out, epoch_line, loop_options, score_line, training_processes

if TYPE_CHECKING:
    from mechm.training.loop import DevScores, EpochReport, LoopConfig

_file = click.Path(path_type=Path)
_folder = click.Path(path_type=Path, exists=True, file_okay=False)


@click.command()
@loop_options
@click.option("--preset", type=click.Choice(["small", "llama2-7b"]), default="small", show_default=True)
@click.option(
    "--base",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="DIR",
    help="Base weights in the Hugging Face layout. Default: the preset's, see mechm weights.",
)
@click.option(
    "--start-from", "start", type=_folder, metavar="DIR", help="Go on learning with this adapter. Default: a new one."
)
@click.option("--train", "train_file", type=_file, required=True, metavar="FILE", help="ECF conversations to train on.")
@click.option("--dev", "dev_file", type=_file, required=True, metavar="FILE", help="Decides which epoch is kept.")
@click.option("--report", "reports", type=_file, multiple=True, metavar="FILE", help="Score at the end, for the card.")
@click.option(
    "--goemotions",
    type=_folder,
    metavar="DIR",
    help="Warm up on comments of GoEmotions (train.tsv), as many of each emotion as there are.",
)
@click.option("--comments", type=click.IntRange(min=1), default=4000, show_default=True, help="Of GoEmotions, at most.")
@click.option("--reccon", type=_folder, metavar="DIR", help="Warm up on RECCON's DailyDialog dialogues, train split.")
@click.option("--warmup-epochs", type=click.IntRange(min=1), default=1, show_default=True, help="On those two.")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Where the adapter goes.")
@click.option("--epochs", type=click.IntRange(min=1), default=3, show_default=True, help="On --train, at the end.")
@click.option("--lr", type=click.FloatRange(min=0, min_open=True), default=5e-4, show_default=True)
@click.option("--max-tokens", type=click.IntRange(min=1), default=1600, show_default=True, help="Padded tokens a step.")
@click.option(
    "--checkpoint-activations",
    is_flag=True,
    help="Compute activations twice instead of keeping them: less memory, a third more time.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. Default: torch's own choice.")
def llm(
    preset: str,
    base: Path | None,
    start: Path | None,
    train_file: Path,
    dev_file: Path,
    reports: tuple[Path, ...],
    goemotions: Path | None,
    comments: int,
    reccon: Path | None,
    warmup_epochs: int,
    out: Path,
    epochs: int,
    lr: float,
    max_tokens: int,
    checkpoint_activations: bool,
    seed: int,
    threads: int | None,
    loop: LoopConfig,
) -> None:
    """Train the Llama's LoRA adapter on the answers it is scored by; keep the epoch that scores best on --dev.

    \b
    mechm train llm --train ecf/train.txt --dev ecf/dev.txt --report ecf/test.txt --out runs/llm
    mechm train llm --train ecf/train.txt --dev ecf/dev.txt --goemotions goemotions --reccon reccon --out runs/llm
    mechm train llm --start-from runs/llm --train own/train.json --dev own/dev.json --lr 2e-4 --out runs/own
    torchrun --nproc-per-node 2 --no-python mechm train llm --train ecf/train.txt ...
    """
    import json

    import torch

    from mechm.cli.options.progress import training_progress
    from mechm.data.corpora import read_goemotions, read_reccon
    from mechm.llm.combination import ADAPTER_FILE
    from mechm.llm.scorer import AnswerScores, add_adapter, load_llama, resume_adapter
    from mechm.llm.stored_adapter import check_fit, read_adapter
    from mechm.llm.stored_base import base_fingerprint, read_base
    from mechm.model.build import CARD_FILE
    from mechm.model.transformers_output import quiet_transformers
    from mechm.training.card import split_scores, unseen_note
    from mechm.training.checkpoint import discard_checkpoint
    from mechm.training.llm import LlamaTrainingConfig, score_with_llama, train_llama
    from mechm.training.llm_adapter import adapter_card, save_adapter
    from mechm.training.stages import Stage, balanced
    from mechm.weights import weights_path
    from mechm_runtime.bundle.open import file_sha256
    from mechm_runtime.llm.questions import QuestionTokenizer
    from mechm_runtime.readers import read_labelled

    with training_processes(out) as accelerator:
        if threads is not None:
            torch.set_num_threads(threads)
        main = accelerator.is_main_process
        if not check_out(out, resume=loop.resume, accelerator=accelerator):
            return
        folder = weights_path("llm", preset) if base is None else base
        tokenizer = QuestionTokenizer(folder / "tokenizer.json")
        held_out = {path.name: read_labelled(path) for path in (dev_file, *reports)}
        corpora = {"ecf": read_labelled(train_file)}
        stages = [Stage("target", ("ecf",), epochs)]
        if reccon is not None:
            corpora["reccon"] = read_reccon(reccon / "dailydialog_train.json")
        if goemotions is not None:
            corpora["goemotions"] = balanced(read_goemotions(goemotions), comments, seed)
        if len(corpora) > 1:
            stages.insert(0, Stage("warm-up", tuple(corpora)[1:], warmup_epochs))
        config = LlamaTrainingConfig(
            tuple(stages),
            seed=seed,
            learning_rate=lr,
            max_tokens=max_tokens,
            checkpoint_activations=checkpoint_activations,
        )
        if main and (note := unseen_note(corpora["ecf"])):
            click.echo(f"note: {note}", err=True)
        stored = read_base(folder)
        card = adapter_card(preset, corpora, config) | {"base_fingerprint": base_fingerprint(stored)}
        if start is not None:
            begun = read_adapter(start)
            check_fit(begun, stored)
            card["start"] = {"adapter_sha256": file_sha256(start / ADAPTER_FILE), "card": dict(begun.card)}
        torch.manual_seed(seed)  # the adapter's own start is random too
        with quiet_transformers():
            llama = load_llama(folder, torch.bfloat16)
            scores = AnswerScores(add_adapter(llama) if start is None else resume_adapter(llama, start), tokenizer)

        def keep(report: EpochReport, dev: DevScores, record: dict[str, Any]) -> None:
            # Other splits are scored now, while the weights of this epoch are in place; they decide nothing.
            scored = {
                name: dev.scored if name == dev_file.name else score_with_llama(scores, tokenizer, labelled)
                for name, labelled in held_out.items()
            }
            reached = {name: split_scores(labelled, scored[name], dev.decision) for name, labelled in held_out.items()}
            described = card | {"stage": report.stage, "epoch": report.epoch, "scores": reached, "run": record}
            save_adapter(scores.llama, dev.decision, described, out)

        with training_progress(shown=main) as (on_step, say):
            train_llama(
                scores,
                tokenizer,
                corpora,
                held_out[dev_file.name],
                config,
                out,
                keep,
                on_step,
                lambda report: say(epoch_line(report)),
                loop,
            )
        if main:
            for name, found in json.loads((out / CARD_FILE).read_text(encoding="utf-8"))["scores"].items():
                click.echo(score_line(name, found, "Llama alone, text only"))
            discard_checkpoint(out)
            click.echo(f"wrote {out}")

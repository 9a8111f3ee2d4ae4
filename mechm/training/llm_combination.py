"""Combines a trained Llama with a trained fusion: fits weights on `dev`, scores other splits, writes them to disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mechm.llm.combination import FittedCombination, fusion_sha256, write_combination
from mechm.llm.scorer import AnswerScores, load_merged
from mechm.model.build import build_network, load_trained
from mechm.model.config import preset_config
from mechm.model.transformers_output import quiet_transformers
from mechm.training.calibration import ScoredConversation, fit_decision
from mechm.training.card import split_scores
from mechm.training.combination import choose_asked_below, choose_shares, combined, fit_combination, with_early_exit
from mechm.training.fusion import score_conversations
from mechm.training.llm import score_with_llama
from mechm.training.presets import text_tokenizer, text_weights
from mechm.weights import weights_path
from mechm_runtime.errors import InputError
from mechm_runtime.llm.questions import QuestionTokenizer
from mechm_runtime.system.progress import Progress, no_progress
from mechm_runtime.types import LabelledConversation

Splits = Mapping[str, Sequence[LabelledConversation]]
Scored = dict[str, list[ScoredConversation]]


def combine_llama_with_fusion(
    preset: str,
    adapter: Path,
    fusion: Path,
    splits: Splits,
    *,
    base: Path | None = None,
    on_progress: Progress | None = None,
) -> FittedCombination:
    """Fit the weights of both models and the decision on their combination, from text alone, and write them.

    fusion: trained fusion weights. splits: name -> conversations; the first is used for fitting, the others are only
        scored. base: the adapter's Llama; None for the preset's.
    on_progress: called with a split's name, the conversations that the Llama has scored and their total.
    Raises: InputError: no conversations to fit on. WeightsError: weights are missing, do not fit or cannot be written.
    """
    dev = next(iter(splits), "dev")
    if not splits.get(dev):
        raise InputError(f"no conversations in {dev}", hint="give annotated conversations with --dev")
    sha256 = fusion_sha256(fusion)
    by_fusion = _fusion_scores(preset, fusion, splits)
    by_llama = _llama_scores(base or weights_path("llm", preset), adapter, splits, on_progress or no_progress)
    config = choose_shares(by_fusion[dev], by_llama[dev], fit_combination(by_fusion[dev], by_llama[dev]))
    by_both = {name: combined(by_fusion[name], by_llama[name], config) for name in splits}
    systems = {"fusion": by_fusion, "llama": by_llama, "both": by_both}
    decisions = {system: fit_decision(scored[dev]) for system, scored in systems.items()}
    asked_below = choose_asked_below(by_fusion[dev], by_both[dev], decisions["fusion"], decisions["both"])
    systems["both"] = {
        name: [
            with_early_exit(one, other, decisions["fusion"], decisions["both"], asked_below)
            for one, other in zip(by_fusion[name], by_both[name], strict=True)
        ]
        for name in splits
    }
    scores = {
        name: {system: split_scores(labelled, systems[system][name], decisions[system]) for system in systems}
        for name, labelled in splits.items()
    }
    fitted = FittedCombination(replace(config, asked_below=asked_below), decisions["both"], sha256, scores)
    write_combination(fitted, adapter)
    return fitted


def _fusion_scores(preset: str, folder: Path, splits: Splits) -> Scored:
    config = preset_config(preset)
    tokenizer = text_tokenizer(config)
    network = build_network(config, text_weights(config))
    load_trained(network, folder)
    return {name: score_conversations(network, tokenizer, labelled) for name, labelled in splits.items()}


def _llama_scores(base: Path, adapter: Path, splits: Splits, on_progress: Progress) -> Scored:
    tokenizer = QuestionTokenizer(base / "tokenizer.json")
    with quiet_transformers():
        # Merged and in fp32, as in the exported bundle.
        scores = AnswerScores(load_merged(base, adapter), tokenizer)
    scored: Scored = {}
    for name, labelled in splits.items():
        scored[name] = []
        for one in labelled:
            scored[name] += score_with_llama(scores, tokenizer, [one])
            on_progress(name, len(scored[name]), len(labelled))
    return scored

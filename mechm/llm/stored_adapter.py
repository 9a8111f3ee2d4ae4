"""Reads an adapter's files and checks, before any weight is loaded, whether it fits a base.

Supported are adapters as `mechm train llm` writes them: plain LoRA pairs on linear layers, in safetensors, with the
decision and the card. Everything else that peft can store is refused, since it could only be merged in part.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechm.llm.combination import ADAPTER_FILE
from mechm.llm.stored_base import StoredBase, base_fingerprint, read_json, read_shapes, read_text
from mechm.model.build import CARD_FILE, DECISION_FILE, read_decision
from mechm_runtime.bundle.config import DecisionConfig
from mechm_runtime.errors import WeightsError

ADAPTER_CONFIG = "adapter_config.json"
PLAIN_INITIALISATIONS = (True, False, "gaussian")
"""Initialisations that do not change the base; PiSSA, OLoRA and others change its weights when they are loaded."""

NOT_PLAIN = (
    *("use_dora", "use_qalora", "use_bdlora", "lora_bias", "modules_to_save", "layer_replication", "target_parameters"),
    *("trainable_token_indices", "alora_invocation_tokens", "arrow_config", "kasa_config", "velora_config"),
    *("monteclora_config", "megatron_config"),
)
"""Settings of peft 0.21's `LoraConfig` that do more than add a product to a layer's weights."""

MAX_NAMED_LAYERS = 3
"""Most layers that an error names."""

_LORA = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


@dataclass(frozen=True, slots=True)
class StoredAdapter:
    """A LoRA adapter's folder.

    layers: module -> (inputs, outputs) of the adapted linear layer.
    targets: last parts of the adapted modules' names.
    """

    folder: Path
    layers: Mapping[str, tuple[int, int]]
    targets: frozenset[str]
    decision: DecisionConfig
    card: Mapping[str, Any]


def read_adapter(folder: Path) -> StoredAdapter:
    """Read an adapter's config, decision, card and shapes.

    Raises: WeightsError: a file is missing or damaged, the weights are pickled, or it is not a plain LoRA adapter.
    """
    config = read_json(folder / ADAPTER_CONFIG)
    if config.get("peft_type") != "LORA":
        raise WeightsError(f"{folder} is a {config.get('peft_type')!r} adapter, not LoRA")
    unusual = [name for name in NOT_PLAIN if config.get(name)]
    unusual += ["bias"] if config.get("bias", "none") != "none" else []
    unusual += ["init_lora_weights"] if config.get("init_lora_weights", True) not in PLAIN_INITIALISATIONS else []
    if unusual:
        raise WeightsError(
            f"{folder} is no plain LoRA adapter: its {ADAPTER_CONFIG} sets {unusual[0]}",
            hint="merge an adapter that mechm train llm wrote, or this one with peft",
        )
    targets = config.get("target_modules")
    if not isinstance(targets, list) or not targets:
        raise WeightsError(
            f"{folder / ADAPTER_CONFIG} lists no target_modules", hint="merge an adapter that mechm train llm wrote"
        )
    decision = read_decision(read_text(folder / DECISION_FILE))
    card = read_json(folder / CARD_FILE)
    # peft writes full module names where there are few layers, else their last parts.
    last_parts = frozenset(str(target).rpartition(".")[2] for target in targets)
    return StoredAdapter(folder, _read_layers(folder), last_parts, decision, card)


def check_fit(adapter: StoredAdapter, base: StoredBase) -> str:
    """Refuse an adapter that was trained on another base.

    Returns: the base's fingerprint.
    Raises: WeightsError: a layer is missing on either side or has other widths, or the adapter's card carries another
        base's fingerprint.
    """
    misfits = list(_misfits(adapter, base))
    hint = f"give the base that it was trained on with --base (its card says preset {adapter.card.get('preset')})"
    if misfits:
        more = f" and {len(misfits) - MAX_NAMED_LAYERS} more" if len(misfits) > MAX_NAMED_LAYERS else ""
        named = "; ".join(misfits[:MAX_NAMED_LAYERS])
        raise WeightsError(f"the adapter in {adapter.folder} does not fit {base}: {named}{more}", hint=hint)
    fingerprint = base_fingerprint(base)
    expected = adapter.card.get("base_fingerprint")
    if expected is not None and expected != fingerprint:
        raise WeightsError(
            f"the adapter in {adapter.folder} was trained on other weights than those of {base}: fingerprint "
            f"{str(expected)[:12]}, not {fingerprint[:12]}",
            hint=hint,
        )
    return fingerprint


def _read_layers(folder: Path) -> dict[str, tuple[int, int]]:
    file = folder / ADAPTER_FILE
    if not file.is_file():
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        if pickled:
            raise WeightsError(
                f"{folder} holds a pickled adapter ({pickled[0]}), which runs code when it is read",
                hint="train it again with mechm train llm, which writes safetensors",
            )
        raise WeightsError(f"{folder} has no {ADAPTER_FILE}", hint="merge an adapter that mechm train llm wrote")
    sides: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, tensor in read_shapes(file).items():
        match = _LORA.fullmatch(name)
        if match is None or len(tensor.shape) != 2:
            raise WeightsError(
                f"{file} holds {name}, which is no side of a LoRA pair",
                hint="merge an adapter that mechm train llm wrote, or this one with peft",
            )
        sides.setdefault(match["module"], {})[match["side"]] = tensor.shape
    for module, pair in sides.items():
        if len(pair) != 2 or pair["A"][0] != pair["B"][1]:
            raise WeightsError(f"{file}: the two sides of {module} do not go together: {pair}")
    if not sides:
        raise WeightsError(f"{file} holds no weights", hint="merge an adapter that mechm train llm wrote")
    return {module: (pair["A"][1], pair["B"][0]) for module, pair in sides.items()}


def _misfits(adapter: StoredAdapter, base: StoredBase) -> Iterator[str]:
    """Yield descriptions of the layers that do not fit."""
    for module, (n_in, n_out) in adapter.layers.items():
        weight = base.tensors.get(f"{module}.weight")
        if weight is None:
            yield f"{module} is not in the base"
        elif weight.shape != (n_out, n_in):
            yield f"{module} is {n_out} x {n_in} in the adapter and {' x '.join(map(str, weight.shape))} in the base"
    for name in base.tensors:
        module, _, kind = name.rpartition(".")
        # A layer missing from the adapter would silently keep the base's weights.
        if kind == "weight" and module.rpartition(".")[2] in adapter.targets and module not in adapter.layers:
            yield f"{module} is not in the adapter"

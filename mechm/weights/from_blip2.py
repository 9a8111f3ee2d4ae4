"""Converts the EVA-CLIP ViT-g/14 in a BLIP-2 checkpoint to a plain `Blip2VisionModel` folder.

BLIP-2 trains its query transformer on a frozen image encoder, so its encoder is the original. Tensors are renamed and
copied one by one, so that the four gigabytes are not in memory twice. Text parts are left out.
"""

from __future__ import annotations

import json
from pathlib import Path

from mechm.weights.check import Check
from mechm_runtime.errors import VerificationError, WeightsError

PREFIX = "vision_model."


def convert(source: Path, target: Path) -> Check:
    """Convert `config.json` and `model.safetensors` in `source` into the folder `target`.

    Raises: WeightsError: not a BLIP-2 checkpoint. VerificationError: a written tensor differs.
    """
    import torch
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save_file

    try:
        config = json.loads((source / "config.json").read_text(encoding="utf-8"))["vision_config"]
        with safe_open(source / "model.safetensors", framework="pt") as checkpoint:
            names = [name for name in checkpoint.keys() if name.startswith(PREFIX)]  # noqa: SIM118
            tensors = {name.removeprefix(PREFIX): checkpoint.get_tensor(name) for name in names}
    except (KeyError, ValueError, SafetensorError) as error:
        raise WeightsError(f"not a BLIP-2 checkpoint: {error}") from error
    if not tensors:
        raise WeightsError(f"the checkpoint has no tensors named {PREFIX}…")
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    config |= {"architectures": ["Blip2VisionModel"], "model_type": "blip_2_vision_model"}
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    preprocessor = source / "preprocessor_config.json"
    if preprocessor.is_file():
        (target / preprocessor.name).write_bytes(preprocessor.read_bytes())
    with safe_open(target / "model.safetensors", framework="pt") as written:
        for name, tensor in tensors.items():
            if not torch.equal(written.get_tensor(name), tensor):
                raise VerificationError(f"{name} was written with other values")
    return Check("the checkpoint's tensors, one by one", 0.0, 0.0)

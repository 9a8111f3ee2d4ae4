"""Writes a language model's folder in the Hugging Face layout, completely or not at all, with the base's other files.

Those are the tokenizer, generation settings and terms of use.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from mechm.llm.stored_base import StoredBase
from mechm_runtime.errors import WeightsError
from mechm_runtime.system.atomic_write import new_folder

MAX_SHARD = "4GB"

COPIED = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json"),
    *("LICENSE*", "NOTICE*", "Notice*", "USE_POLICY*"),  # these terms apply to derived weights too
)
"""Files of the base that are copied into the new folder."""


@contextmanager
def written_beside(out: Path) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `out` if the block succeeds, and removed otherwise.

    Raises: WeightsError: it cannot be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(out) as folder:
            yield folder
    except (OSError, SafetensorError) as error:  # safetensors has its own error for a full disk
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise WeightsError(f"cannot write {out}: {reason}", hint="free some space or choose another --out") from error


def copy_companions(base_folder: Path, folder: Path) -> None:
    """Copy the base's tokenizer, generation settings and terms; give the weights the config's file permissions."""
    for pattern in COPIED:
        for source in base_folder.glob(pattern):
            shutil.copyfile(source, folder / source.name)
    # safetensors creates files that only their owner can read, but a server often runs as another user.
    for file in folder.glob("*.safetensors"):
        file.chmod((folder / "config.json").stat().st_mode)


def check_vocabulary(base: StoredBase) -> None:
    """Raises: WeightsError: the tokenizer has more tokens than the model."""
    from tokenizers import Tokenizer

    n_tokens = Tokenizer.from_file(str(base.folder / "tokenizer.json")).get_vocab_size()
    n_embedded = int(base.config.get("vocab_size", 0))
    if n_tokens > n_embedded:
        raise WeightsError(
            f"the tokenizer of {base} has {n_tokens} tokens, more than the model embeds",
            hint="give the folder of one whole model with --base",
        )


def check_space(out: Path, n_bytes: int) -> None:
    """Check for free disk space before the work starts.

    Raises: WeightsError: the disk has less free space than the model needs.
    """
    parent = next(folder for folder in out.absolute().parents if folder.is_dir())
    free = shutil.disk_usage(parent).free
    if free < n_bytes:
        raise WeightsError(
            f"the merged model takes {n_bytes / 1e9:.1f} GB, and {parent} has {free / 1e9:.1f} GB free",
            hint="free some space or choose another --out",
        )

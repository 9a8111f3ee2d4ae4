"""Tiny encoders of every architecture that is exported, with random weights, in real folders."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers

MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*MARKS, "i", "you", "it", "the", "a", "is", "was", "not", "and", "to", "my", "of", "no", "yes", "we", "what"]
VOCAB_SIZE = 64

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
TEXT = {**SIZES, "vocab_size": VOCAB_SIZE, "max_position_embeddings": 40, "pad_token_id": 0}
VISION = {**SIZES, "image_size": 28, "patch_size": 14}
SPEECH = {
    **SIZES,
    "conv_dim": (16, 16, 16),
    "conv_kernel": (10, 3, 2),
    "conv_stride": (5, 8, 4),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
}
LAYER_NORM = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}

MODELS: dict[str, Callable[[], Any]] = {
    "bert": lambda: tf.BertModel(tf.BertConfig(**TEXT)),
    "camembert": lambda: tf.CamembertModel(tf.CamembertConfig(**TEXT)),
    "distilbert": lambda: tf.DistilBertModel(
        tf.DistilBertConfig(
            vocab_size=VOCAB_SIZE, max_position_embeddings=40, dim=32, n_layers=1, n_heads=2, hidden_dim=48
        )
    ),
    "electra": lambda: tf.ElectraModel(tf.ElectraConfig(**TEXT, embedding_size=16)),
    "mpnet": lambda: tf.MPNetModel(tf.MPNetConfig(**TEXT)),
    "roberta": lambda: tf.RobertaModel(tf.RobertaConfig(**TEXT)),
    "xlm-roberta": lambda: tf.XLMRobertaModel(tf.XLMRobertaConfig(**TEXT)),
    "clip": lambda: tf.CLIPModel(
        tf.CLIPConfig(
            text_config={**TEXT, "eos_token_id": 3, "bos_token_id": 2}, vision_config=VISION, projection_dim=24
        )
    ),
    "siglip": lambda: tf.SiglipModel(tf.SiglipConfig(text_config=TEXT, vision_config=VISION)),
    "dinov2": lambda: tf.Dinov2Model(tf.Dinov2Config(**VISION, mlp_ratio=2)),
    # Its own initial values are so small that every image looks alike.
    "eva-clip": lambda: tf.Blip2VisionModel(tf.Blip2VisionConfig(**VISION, initializer_range=0.05)),
    "hubert-large": lambda: tf.HubertModel(tf.HubertConfig(**SPEECH, **LAYER_NORM)),
    "hubert-base": lambda: tf.HubertModel(tf.HubertConfig(**SPEECH)),
    "wav2vec2-base": lambda: tf.Wav2Vec2Model(tf.Wav2Vec2Config(**SPEECH)),
    "wav2vec2-large": lambda: tf.Wav2Vec2Model(tf.Wav2Vec2Config(**SPEECH, **LAYER_NORM)),
    "wavlm": lambda: tf.WavLMModel(tf.WavLMConfig(**SPEECH)),
    "whisper": lambda: tf.WhisperForConditionalGeneration(
        tf.WhisperConfig(
            d_model=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            num_mel_bins=8,
            max_source_positions=50,
            max_target_positions=16,
            vocab_size=VOCAB_SIZE,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=3,
            decoder_start_token_id=2,
        )
    ),
}

LABELS = {0: "anger", 1: "joy", 2: "Überraschung"}
HEAD = {"num_labels": 3, "id2label": LABELS, "label2id": {label: number for number, label in LABELS.items()}}
MODELS |= {
    # Found through optimum.
    "deberta-v2": lambda: tf.DebertaV2Model(
        tf.DebertaV2Config(
            **TEXT,
            relative_attention=True,
            position_buckets=8,
            pos_att_type=["p2c", "c2p"],
            position_biased_input=False,
            type_vocab_size=0,
        )
    ),
    "modernbert": lambda: tf.ModernBertModel(
        tf.ModernBertConfig(**TEXT, local_attention=8, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3)
    ),
    "data2vec-audio": lambda: tf.Data2VecAudioModel(
        tf.Data2VecAudioConfig(
            **{name: value for name, value in SPEECH.items() if name != "num_conv_pos_embeddings"},
            num_conv_pos_embeddings=2,
            conv_pos_kernel_size=3,
        )
    ),
    "unispeech-base": lambda: tf.UniSpeechModel(tf.UniSpeechConfig(**SPEECH)),
    "w2v-bert": lambda: tf.Wav2Vec2BertModel(
        tf.Wav2Vec2BertConfig(**SIZES, feature_projection_input_dim=16, output_hidden_size=32)
    ),
    "vit": lambda: tf.ViTModel(tf.ViTConfig(**VISION)),
    "dinov2-registers": lambda: tf.Dinov2WithRegistersModel(tf.Dinov2WithRegistersConfig(**VISION)),
    "dinov3": lambda: tf.DINOv3ViTModel(tf.DINOv3ViTConfig(**VISION, num_register_tokens=4)),
    "videomae": lambda: tf.VideoMAEModel(tf.VideoMAEConfig(**VISION, num_frames=4, tubelet_size=2)),
    "siglip2": lambda: tf.Siglip2Model(
        tf.Siglip2Config(text_config=TEXT, vision_config={**SIZES, "num_patches": 16, "patch_size": 4})
    ),
    # With trained heads.
    "roberta-classifier": lambda: tf.RobertaForSequenceClassification(
        tf.RobertaConfig(**TEXT, **HEAD, type_vocab_size=1)
    ),
    "bert-classifier": lambda: tf.BertForSequenceClassification(tf.BertConfig(**TEXT, **HEAD)),
    "distilbert-classifier": lambda: tf.DistilBertForSequenceClassification(
        tf.DistilBertConfig(
            vocab_size=VOCAB_SIZE, max_position_embeddings=40, dim=32, n_layers=1, n_heads=2, hidden_dim=48, **HEAD
        )
    ),
    "hubert-classifier": lambda: tf.HubertForSequenceClassification(
        tf.HubertConfig(**SPEECH, **HEAD, classifier_proj_size=16, use_weighted_layer_sum=True)
    ),
    "wavlm-classifier": lambda: tf.WavLMForSequenceClassification(
        tf.WavLMConfig(**SPEECH, **LAYER_NORM, **HEAD, classifier_proj_size=16)
    ),
    "vit-classifier": lambda: tf.ViTForImageClassification(tf.ViTConfig(**VISION, **HEAD)),
}

Folders = Callable[[str], Path]


@pytest.fixture(scope="session")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """`encoders("bert")` is a folder that save_pretrained wrote, with a tokenizer. Treat it as read-only."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("encoders") / name
            torch.manual_seed(0)
            with warnings.catch_warnings():  # DeBERTa's module compiles with torch.jit, which torch is giving up
                warnings.simplefilter("ignore", DeprecationWarning)
                model = MODELS[name]().eval()
            with torch.no_grad():
                for key, parameter in model.named_parameters():
                    if "norm" in key or "bias" in key:  # ones and zeros would hide that they are lost
                        parameter.add_(torch.randn_like(parameter) * 0.1)
                    elif key.startswith(("classifier", "projector", "layer_weights")):  # so small that all is alike
                        parameter.copy_(torch.randn_like(parameter) * 0.5)
            model.save_pretrained(made[name])
            save_tokenizer(made[name])
        return made[name]

    return folder


def save_tokenizer(folder: Path) -> None:
    """A tokenizer of whole words in the form that transformers loads without code of the folder's."""
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token=WORDS[1]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))

"""The packed Llama as an ONNX graph, written operator by operator.

A traced graph would give the same answers. This one leaves out what the answers do not need and what engines do badly:
heads that share keys are one matrix product instead of copies of the keys; the conversation's tokens do not attend to
the questions'; the last layer computes only the rows that are asked about; and `past` holds the keys and values of
earlier text, so that the next utterance costs its own tokens only.

`fp32` and `w8` (int8 weights, each behind a DequantizeLinear) use opset 18 only. `int8` is for onnxruntime on CPU and
uses its operators: 8-bit products with activations quantized at run time. Down projections have one scale per token,
since a Llama's first token is a thousand times larger there than the others.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from mechm.llm.packed import PackedLlama
from mechm.model.fusion import MASKED
from mechm_export.graphs.files import MICROSOFT
from mechm_export.graphs.part import ExportPart
from mechm_export.llama.graph_builder import GraphBuilder
from mechm_export.precision.dynamic_int8 import MIN_SCALE, quantize_rows
from mechm_runtime.bundle.precision import PORTABLE_INT8
from mechm_runtime.errors import VerificationError
from mechm_runtime.llm.questions import CONVERSATION

OPSET = 18
TOKEN_SCALED = frozenset({"mlp.down_proj"})
"""Linear layers whose activations have one scale per token in int8 (`benchmarks/int8_llama.py`)."""


def write_llama_graph(
    part: ExportPart, path: Path, precision: str, positions: int, token_scaled: Collection[str] = TOKEN_SCALED
) -> None:
    """Write the Llama's part in a precision: fp32, int8 or w8.

    part: its module is a PackedLlama. positions: upper limit of `position_ids`.
    token_scaled: names of linear layers in a transformer layer, see `TOKEN_SCALED`.
    Raises: VerificationError: the language model's architecture is not a Llama's.
    """
    packed = part.module
    if not isinstance(packed, PackedLlama):
        raise TypeError(f"{type(packed).__name__} is not a PackedLlama")
    causal = packed.scores.causal
    check_architecture(causal.config)
    build = GraphBuilder()
    if precision == "int8":
        operators: _Operators = _Int8Operators(build, causal.config.rms_norm_eps, token_scaled)
    else:
        operators = _Operators(build, causal.config.rms_norm_eps, int8_weights=precision == PORTABLE_INT8)
    _LlamaGraph(build, operators, packed, positions).write()
    model = build.model("llama", part.inputs, part.outputs, OPSET, own_operators=precision == "int8")
    onnx.checker.check_model(model)
    onnx.save_model(model, path)


def check_architecture(config: Any) -> None:
    """Raises: VerificationError: the model is not a Llama, or has parts that the graph does not have."""
    if config.model_type != "llama":
        raise VerificationError(
            f"the Llama's graph is written for model type llama, this is {config.model_type}",
            hint="serve it with vLLM instead: mechm merge, or leave it out: --adapter none",
        )
    required = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
    for name, expected in required.items():
        if (found := getattr(config, name, expected)) != expected:
            raise VerificationError(f"the Llama's graph is written for {name} {expected}, not {found}")


class _Operators:
    """Linear layers, norms and rotary embeddings in the operators of opset 18.

    int8_weights: store the weights in 8 bits.
    """

    def __init__(self, build: GraphBuilder, epsilon: float, int8_weights: bool = False) -> None:
        self.build = build
        self._epsilon = epsilon
        self._int8_weights = int8_weights

    def linear(self, states: str, layers: dict[str, Tensor]) -> list[str]:
        """Linear layers on the same input; layers: name -> weight (out, in)."""
        return [self.build.op("MatMul", states, self._weight(name, w)) for name, w in layers.items()]

    def embedding(self, table: Tensor, ids: str) -> str:
        """Rows of a table (vocabulary, D)."""
        if not self._int8_weights:
            return self.build.op("Gather", self.build.constant("embedding", table.numpy()), ids)
        rows, scale = quantize_rows(table.numpy())
        looked_up = self.build.op("Gather", self.build.constant("embedding", rows), ids)
        factor = self.build.op("Gather", self.build.constant("embedding_scale", scale[:, None]), ids)
        return self.build.op("Mul", self.build.op("Cast", looked_up, to=onnx.TensorProto.FLOAT), factor)

    def norm(self, states: str, added: str | None, name: str, weight: Tensor) -> tuple[str, str]:
        """RMS norm of `states` plus `added`, and that sum. added: None for no addition."""
        build = self.build
        total = states if added is None else build.op("Add", states, added)
        square = build.op("Pow", total, build.constant("two", 2.0, np.float32))
        mean = build.op("ReduceMean", square, build.integers(-1), keepdims=1)
        epsilon = build.constant("epsilon", self._epsilon, np.float32)
        root = build.op("Sqrt", build.op("Add", mean, epsilon))
        return build.op("Mul", build.op("Div", total, root), build.constant(name, weight.numpy())), total

    def rotary(self, states: str, positions: str, tables: tuple[str, str], n_heads: int) -> str:
        """Rotate (1, T, n_heads * D) by position; tables: cosines and sines (positions, D / 2)."""
        build = self.build
        halves = build.op("Reshape", states, build.integers(0, 0, n_heads, 2, -1))
        cosine, sine = (build.op("Unsqueeze", build.op("Gather", t, positions), build.integers(2)) for t in tables)
        first, second = (
            build.op("Squeeze", half, build.integers(3))
            for half in build.ops("Split", halves, n_outputs=2, axis=3, num_outputs=2)
        )
        rotated = [
            build.op("Sub", build.op("Mul", first, cosine), build.op("Mul", second, sine)),
            build.op("Add", build.op("Mul", second, cosine), build.op("Mul", first, sine)),
        ]
        return build.op("Reshape", build.op("Concat", *rotated, axis=-1), build.integers(0, 0, -1))

    def swish(self, states: str) -> str:
        """SiLU, the activation of the MLP's gate."""
        return self.build.op("Mul", states, self.build.op("Sigmoid", states))

    def _weight(self, name: str, weight: Tensor) -> str:
        if not self._int8_weights:
            return self.build.constant(name, weight.numpy().T)
        rows, scale = quantize_rows(weight.numpy())
        stored, factors = self.build.constant(f"{name}_int8", rows.T), self.build.constant(f"{name}_scale", scale)
        return self.build.op("DequantizeLinear", stored, factors, axis=1)


class _Int8Operators(_Operators):
    """The same layers in onnxruntime's own operators, with linear layers in 8 bits.

    token_scaled: layers whose activations have one scale per token; those of all others have one scale per tensor.
    """

    def __init__(self, build: GraphBuilder, epsilon: float, token_scaled: Collection[str]) -> None:
        super().__init__(build, epsilon, int8_weights=True)
        self._token_scaled = tuple(token_scaled)

    def linear(self, states: str, layers: dict[str, Tensor]) -> list[str]:
        if all(name.endswith(self._token_scaled) for name in layers) and self._token_scaled:
            return self._linear_per_token(states, layers)
        quantized, scale, zero_point = self.build.ops("DynamicQuantizeLinear", states, n_outputs=3)
        return [self._product(quantized, scale, zero_point, name, weight) for name, weight in layers.items()]

    def norm(self, states: str, added: str | None, name: str, weight: Tensor) -> tuple[str, str]:
        if added is None:
            return super().norm(states, added, name, weight)
        gamma = self.build.constant(name, weight.numpy())
        normed, _, _, total = self.build.ops(
            "SkipSimplifiedLayerNormalization",
            *(states, added, gamma),
            n_outputs=4,
            skip=(1, 2),
            domain=MICROSOFT,
            epsilon=self._epsilon,
        )
        return normed, total

    def rotary(self, states: str, positions: str, tables: tuple[str, str], n_heads: int) -> str:
        return self.build.op("RotaryEmbedding", states, positions, *tables, domain=MICROSOFT, num_heads=n_heads)

    def _linear_per_token(self, states: str, layers: dict[str, Tensor]) -> list[str]:
        build = self.build
        peak = build.op("ReduceMax", build.op("Abs", states), build.integers(-1), keepdims=1)
        floored = build.op("Max", peak, build.constant("smallest", MIN_SCALE, np.float32))
        scale = build.op("Mul", floored, build.constant("step", 1 / 127, np.float32))
        one, middle = build.constant("one", 1.0, np.float32), build.constant("middle", 128, np.uint8)
        quantized = build.op("QuantizeLinear", build.op("Div", states, scale), one, middle)
        return [
            build.op("Mul", self._product(quantized, one, middle, name, weight), scale)
            for name, weight in layers.items()
        ]

    def _product(self, states: str, scale: str, zero_point: str, name: str, weight: Tensor) -> str:
        rows, factors = quantize_rows(weight.numpy())
        stored = self.build.constant(f"{name}_int8", rows.T), scale, self.build.constant(f"{name}_scale", factors)
        return self.build.op("MatMulIntegerToFloat", states, *stored, zero_point, domain=MICROSOFT)


@dataclass(frozen=True, slots=True)
class _QueryGroup:
    """A range of queries that attend to the same keys.

    mask: float32 (rows * group, keys), added to the scores. first, end: the range of queries, int64 (1,), counted after
    heads that share keys were stacked; None for all queries. n_keys: how many of the keys, None for all.
    """

    mask: str
    first: str | None = None
    end: str | None = None
    n_keys: str | None = None


class _LlamaGraph:
    """Writes the graph of a PackedLlama, which documents its inputs and outputs."""

    def __init__(self, build: GraphBuilder, operators: _Operators, packed: PackedLlama, positions: int) -> None:
        self._build, self._operators, self._packed = build, operators, packed
        self._causal = packed.scores.causal
        config = self._causal.config
        self._n_heads, self._n_key_heads = config.num_attention_heads, config.num_key_value_heads
        self._head_dim = int(self._causal.model.layers[0].self_attn.head_dim)
        self._group = self._n_heads // self._n_key_heads
        self._tables = self._rotary_tables(positions)
        self._start, self._end = build.integers(0), build.integers(np.iinfo(np.int64).max)

    def write(self) -> None:
        """Add every node and name the outputs."""
        with torch.inference_mode():
            self._write()

    def _write(self) -> None:
        build = self._build
        asked = build.op("Concat", "emotion_at", "cause_at", axis=0)
        (n_new,), (n_past,) = self._sizes("input_ids", 1), self._sizes("past", 2)
        n_conversation = self._n_conversation()
        n_read = build.op("Add", n_past, n_conversation)
        mask = self._mask(n_past, n_new)
        # The conversation's rows come first, and do not attend to the questions.
        conversation_mask = self._slice(self._slice(mask, self._start, n_conversation, 0), self._start, n_read, 1)
        question_mask = self._slice(mask, n_conversation, self._end, 0)
        border = build.op("Mul", n_conversation, build.integers(self._group))
        conversation = _QueryGroup(self._repeat_rows(conversation_mask), self._start, border, n_read)
        questions = _QueryGroup(self._repeat_rows(question_mask), border, self._end)
        answers = _QueryGroup(self._repeat_rows(build.op("Gather", mask, asked, axis=0)))

        layers = self._causal.model.layers
        widened = build.op("Cast", "past", to=onnx.TensorProto.FLOAT)
        past = build.ops("Split", widened, n_outputs=2 * len(layers), axis=0, num_outputs=2 * len(layers))
        present: list[str] = []
        states, added, positions = self._embedded(), None, "position_ids"
        for number, layer in enumerate(layers):
            name = f"layers.{number}"
            normed, states = self._operators.norm(
                states, added, f"{name}.input_layernorm", layer.input_layernorm.weight
            )
            attention, prefix = layer.self_attn, f"{name}.self_attn"
            projections = {f"{prefix}.{p}": getattr(attention, p).weight for p in ("k_proj", "v_proj")}
            query = {f"{prefix}.q_proj": attention.q_proj.weight * attention.scaling}
            groups = [conversation, questions]
            if number < len(layers) - 1:
                queries, keys, values = self._operators.linear(normed, query | projections)
            else:
                # Nothing reads the last layer's other rows.
                groups = [answers]
                keys, values = self._operators.linear(normed, projections)
                normed, states = (build.op("Gather", rows, asked, axis=1) for rows in (normed, states))
                positions = build.op("Gather", "position_ids", asked, axis=1)
                (queries,) = self._operators.linear(normed, query)
            queries = self._operators.rotary(queries, positions, self._tables, self._n_heads)
            keys = self._operators.rotary(keys, "position_ids", self._tables, self._n_key_heads)
            new = [self._key_heads(keys), self._key_heads(values)]
            present += [self._slice(one, self._start, n_conversation, 1) for one in new]
            before = (build.op("Squeeze", one, self._start) for one in past[2 * number : 2 * number + 2])
            keys, values = (build.op("Concat", *pair, axis=1) for pair in zip(before, new, strict=True))
            context = self._attention(queries, keys, values, groups)
            (context,) = self._operators.linear(context, {f"{prefix}.o_proj": attention.o_proj.weight})
            norm = layer.post_attention_layernorm.weight
            normed, states = self._operators.norm(states, context, f"{name}.post_attention_layernorm", norm)
            added = self._mlp(f"{name}.mlp", layer.mlp, normed)
        normed, _ = self._operators.norm(states, added, "norm", self._causal.model.norm.weight)
        self._answers(normed)
        cached = build.op("Concat", *(build.op("Unsqueeze", one, self._start) for one in present), axis=0)
        build.op("Cast", cached, output="present", to=onnx.TensorProto.FLOAT16)

    def _sizes(self, value: str, *axes: int) -> list[str]:
        """Sizes of a value's axes, int64 (1,) each."""
        shape = self._build.op("Shape", value)
        return [self._slice(shape, self._build.integers(axis), self._build.integers(axis + 1), 0) for axis in axes]

    def _slice(self, value: str, first: str, end: str, axis: int) -> str:
        return self._build.op("Slice", value, first, end, self._build.integers(axis))

    def _n_conversation(self) -> str:
        """Number of new tokens that belong to the conversation, int64 (1,); they come first."""
        build = self._build
        belongs = build.op("Equal", "segments", build.integers(CONVERSATION))
        return build.op(
            "ReduceSum", build.op("Cast", belongs, to=onnx.TensorProto.INT64), build.integers(1), keepdims=0
        )

    def _mask(self, n_past: str, n_new: str) -> str:
        """Attention mask of the new tokens, float32 (new, past + new): 0, or a large negative number where hidden."""
        build = self._build
        scalar = build.op("Squeeze", n_new)
        order = build.op("Range", build.constant("none", 0, np.int64), scalar, build.constant("each", 1, np.int64))
        column, row = build.integers(1), self._start
        before = build.op("LessOrEqual", build.op("Unsqueeze", order, row), build.op("Unsqueeze", order, column))
        segments = build.op("Squeeze", "segments", self._start)
        others = build.op("Unsqueeze", segments, row)
        own = build.op("Equal", others, build.op("Unsqueeze", segments, column))
        shared = build.op("Equal", others, build.integers(CONVERSATION))
        visible = build.op("And", before, build.op("Or", own, shared))
        seen, unseen = build.constant("seen", 0.0, np.float32), build.constant("unseen", MASKED, np.float32)
        among_new = build.op("Where", visible, seen, unseen)
        of_past = build.op("Expand", seen, build.op("Concat", n_new, n_past, axis=0))
        return build.op("Concat", of_past, among_new, axis=1)

    def _repeat_rows(self, mask: str) -> str:
        """A mask with each row repeated once per head that shares its keys."""
        build = self._build
        rows, keys = self._sizes(mask, 0, 1)
        repeated = build.op("Concat", rows, build.integers(self._group), keys, axis=0)
        expanded = build.op("Expand", build.op("Unsqueeze", mask, build.integers(1)), repeated)
        flat = build.op("Concat", build.op("Mul", rows, build.integers(self._group)), keys, axis=0)
        return build.op("Reshape", expanded, flat)

    def _embedded(self) -> str:
        """Embeddings of the new tokens (1, T, D), with soft tokens inserted."""
        build = self._build
        words = self._operators.embedding(self._causal.get_input_embeddings().weight, "input_ids")
        places = build.op("Unsqueeze", "soft_at", build.integers(1))
        rows = build.op("ScatterND", build.op("Squeeze", words, self._start), places, "soft_tokens")
        return build.op("Unsqueeze", rows, self._start)

    def _rotary_tables(self, positions: int) -> tuple[str, str]:
        """Cosines and sines, float32 (positions, head_dim / 2), computed by the model's own rotary embedding."""
        with torch.inference_mode():
            device = self._packed.scores.device
            order = torch.arange(positions, device=device)[None]
            tables = self._causal.model.rotary_emb(torch.zeros(1, device=device), order)
        half = self._head_dim // 2
        cosine, sine = (table[0, :, :half].float().cpu().numpy() for table in tables)
        return self._build.constant("cosine", cosine), self._build.constant("sine", sine)

    def _key_heads(self, states: str) -> str:
        """(1, T, key heads * D) to (key heads, T, D)."""
        build = self._build
        heads = build.op("Reshape", states, build.integers(-1, self._n_key_heads, self._head_dim))
        return build.op("Transpose", heads, perm=[1, 0, 2])

    def _attention(self, queries: str, keys: str, values: str, groups: list[_QueryGroup]) -> str:
        """queries: (1, R, heads * D), scaled. keys, values: (key heads, past + new, D). Returns: as the queries."""
        build = self._build
        split = build.op("Reshape", queries, build.integers(-1, self._n_key_heads, self._group, self._head_dim))
        stacked = build.integers(self._n_key_heads, -1, self._head_dim)
        # Heads that share keys are stacked: one product per group.
        grouped = build.op("Reshape", build.op("Transpose", split, perm=[1, 0, 2, 3]), stacked)
        contexts = []
        for group in groups:
            group_queries, group_keys, group_values = grouped, keys, values
            if group.first is not None and group.end is not None:
                group_queries = self._slice(grouped, group.first, group.end, 1)
            if group.n_keys is not None:
                group_keys, group_values = (self._slice(one, self._start, group.n_keys, 1) for one in (keys, values))
            scores = build.op("MatMul", group_queries, build.op("Transpose", group_keys, perm=[0, 2, 1]))
            weights = build.op("Softmax", build.op("Add", scores, group.mask), axis=-1)
            contexts.append(build.op("MatMul", weights, group_values))
        rows = contexts[0] if len(contexts) == 1 else build.op("Concat", *contexts, axis=1)
        unstacked = build.integers(self._n_key_heads, -1, self._group, self._head_dim)
        side_by_side = build.op("Transpose", build.op("Reshape", rows, unstacked), perm=[1, 0, 2, 3])
        return build.op("Reshape", side_by_side, build.integers(1, -1, self._n_heads * self._head_dim))

    def _mlp(self, name: str, mlp: Any, states: str) -> str:
        gate, up = self._operators.linear(
            states, {f"{name}.gate_proj": mlp.gate_proj.weight, f"{name}.up_proj": mlp.up_proj.weight}
        )
        product = self._build.op("Mul", self._operators.swish(gate), up)
        (narrow,) = self._operators.linear(product, {f"{name}.down_proj": mlp.down_proj.weight})
        return narrow

    def _answers(self, states: str) -> None:
        """Add the heads and name the outputs. states: (1, 2 * questions, D), the emotions' rows first."""
        build = self._build
        rows = build.ops("Split", build.op("Squeeze", states, self._start), n_outputs=2, axis=0, num_outputs=2)
        heads = {"emotion": self._packed.emotion_head, "cause": self._packed.cause_head}
        for row, (name, head) in zip(rows, heads.items(), strict=True):
            scores = build.op("MatMul", row, build.constant(f"{name}_head", head.numpy().T))
            build.op("LogSoftmax", scores, output=f"{name}_log_probabilities", axis=-1)

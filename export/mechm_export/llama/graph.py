"""The packed Llama as an ONNX graph, written operator by operator.

Tracing gives the same answers; by hand the graph leaves out what the answers do not need and what engines do badly:
heads that share keys are one matrix product instead of copies of the keys, the conversation's tokens never meet the
questions', the last layer goes on with the rows that are asked about, and `past` brings the keys and values of what was
read before, so that the next utterance costs its own tokens alone.

`fp32` and `w8` (int8 weights behind a DequantizeLinear each) are opset 18 and nothing else. `int8` is for onnxruntime
on CPU and uses its operators: 8-bit products with activations quantized as they come, those of the down projections a
token at a time, since a Llama's first token is a thousand times larger there than the others.
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
from mechm_runtime.bundle.precision import W8
from mechm_runtime.errors import VerificationError
from mechm_runtime.llm.questions import CONVERSATION

OPSET = 18
TOKEN_SCALED = frozenset({"mlp.down_proj"})
"""Linear layers whose activations have a scale a token in int8 (`benchmarks/int8_llama.py`)."""


def write_llama_graph(
    part: ExportPart, path: Path, precision: str, positions: int, token_scaled: Collection[str] = TOKEN_SCALED
) -> None:
    """Write the Llama's part in a precision: fp32, int8 or w8.

    part: its module is a PackedLlama. positions: upper limit of `position_ids`.
    token_scaled: names of linear layers in a transformer layer, see `TOKEN_SCALED`.
    Raises: VerificationError: the language model is not built as a Llama.
    """
    packed = part.module
    if not isinstance(packed, PackedLlama):
        raise TypeError(f"{type(packed).__name__} is not a PackedLlama")
    causal = packed.scores.causal
    check_architecture(causal.config)
    build = GraphBuilder()
    if precision == "int8":
        arithmetic: _Arithmetic = _Int8(build, causal.config.rms_norm_eps, token_scaled)
    else:
        arithmetic = _Arithmetic(build, causal.config.rms_norm_eps, int8_weights=precision == W8)
    _LlamaGraph(build, arithmetic, packed, positions).write()
    model = build.model("llama", part.inputs, part.outputs, OPSET, own_operators=precision == "int8")
    onnx.checker.check_model(model)
    onnx.save_model(model, path)


def check_architecture(config: Any) -> None:
    """Raises: VerificationError: it is no Llama, or one with parts that the graph does not have."""
    if config.model_type != "llama":
        raise VerificationError(
            f"the Llama's graph is written for model type llama, this is {config.model_type}",
            hint="serve it with vLLM instead: mechm merge, or leave it out: --llm none",
        )
    differs = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
    for name, expected in differs.items():
        if (found := getattr(config, name, expected)) != expected:
            raise VerificationError(f"the Llama's graph is written for {name} {expected}, not {found}")


class _Arithmetic:
    """Linear layers, norms and rotations in the operators of opset 18.

    int8_weights: store the weights in 8 bits.
    """

    def __init__(self, build: GraphBuilder, epsilon: float, int8_weights: bool = False) -> None:
        self.build = build
        self._epsilon = epsilon
        self._int8_weights = int8_weights

    def linear(self, states: str, layers: dict[str, Tensor]) -> list[str]:
        """Linear layers of one input; layers: name -> weight (out, in)."""
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
        """RMS norm of the sum, and the sum. added: None where there is nothing to add."""
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
        turned = [
            build.op("Sub", build.op("Mul", first, cosine), build.op("Mul", second, sine)),
            build.op("Add", build.op("Mul", second, cosine), build.op("Mul", first, sine)),
        ]
        return build.op("Reshape", build.op("Concat", *turned, axis=-1), build.integers(0, 0, -1))

    def swish(self, states: str) -> str:
        """The activation of the gate."""
        return self.build.op("Mul", states, self.build.op("Sigmoid", states))

    def _weight(self, name: str, weight: Tensor) -> str:
        if not self._int8_weights:
            return self.build.constant(name, weight.numpy().T)
        rows, scale = quantize_rows(weight.numpy())
        stored, factors = self.build.constant(f"{name}_int8", rows.T), self.build.constant(f"{name}_scale", scale)
        return self.build.op("DequantizeLinear", stored, factors, axis=1)


class _Int8(_Arithmetic):
    """The same in onnxruntime's operators, linear layers in 8 bits.

    token_scaled: layers whose activations have a scale a token; those of the others have one in all.
    """

    def __init__(self, build: GraphBuilder, epsilon: float, token_scaled: Collection[str]) -> None:
        super().__init__(build, epsilon, int8_weights=True)
        self._token_scaled = tuple(token_scaled)

    def linear(self, states: str, layers: dict[str, Tensor]) -> list[str]:
        if all(name.endswith(self._token_scaled) for name in layers) and self._token_scaled:
            return self._linear_by_token(states, layers)
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

    def _linear_by_token(self, states: str, layers: dict[str, Tensor]) -> list[str]:
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
class _Readers:
    """Queries that look at the same keys.

    mask: float32 (rows * group, keys), added to the scores. first, end: which of the queries, int64 (1,), counted after
    heads that share keys were put below each other; None for all. n_keys: how many of the keys, None for all.
    """

    mask: str
    first: str | None = None
    end: str | None = None
    n_keys: str | None = None


class _LlamaGraph:
    """The graph of a PackedLlama, see there for its inputs and outputs."""

    def __init__(self, build: GraphBuilder, arithmetic: _Arithmetic, packed: PackedLlama, positions: int) -> None:
        self._build, self._arithmetic, self._packed = build, arithmetic, packed
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
        build, arithmetic = self._build, self._arithmetic
        asked = build.op("Concat", "emotion_at", "cause_at", axis=0)
        (n_new,), (n_past,) = self._sizes("input_ids", 1), self._sizes("past", 2)
        n_conversation = self._n_conversation()
        n_read = build.op("Add", n_past, n_conversation)
        mask = self._mask(n_past, n_new)
        # The conversation's rows come first, and do not see the questions.
        ours = self._slice(self._slice(mask, self._start, n_conversation, 0), self._start, n_read, 1)
        theirs = self._slice(mask, n_conversation, self._end, 0)
        border = build.op("Mul", n_conversation, build.integers(self._group))
        conversation = _Readers(self._a_head(ours), self._start, border, n_read)
        questions = _Readers(self._a_head(theirs), border, self._end)
        answers = _Readers(self._a_head(build.op("Gather", mask, asked, axis=0)))

        layers = self._causal.model.layers
        widened = build.op("Cast", "past", to=onnx.TensorProto.FLOAT)
        past = build.ops("Split", widened, n_outputs=2 * len(layers), axis=0, num_outputs=2 * len(layers))
        present: list[str] = []
        states, added, positions = self._embedded(), None, "position_ids"
        for number, layer in enumerate(layers):
            name = f"layers.{number}"
            normed, states = arithmetic.norm(states, added, f"{name}.input_layernorm", layer.input_layernorm.weight)
            attention, attended = layer.self_attn, f"{name}.self_attn"
            projections = {f"{attended}.{p}": getattr(attention, p).weight for p in ("k_proj", "v_proj")}
            query = {f"{attended}.q_proj": attention.q_proj.weight * attention.scaling}
            readers = [conversation, questions]
            if number < len(layers) - 1:
                queries, keys, values = arithmetic.linear(normed, query | projections)
            else:
                # Nothing looks at the last layer's other rows.
                readers = [answers]
                keys, values = arithmetic.linear(normed, projections)
                normed, states = (build.op("Gather", rows, asked, axis=1) for rows in (normed, states))
                positions = build.op("Gather", "position_ids", asked, axis=1)
                (queries,) = arithmetic.linear(normed, query)
            queries = arithmetic.rotary(queries, positions, self._tables, self._n_heads)
            keys = arithmetic.rotary(keys, "position_ids", self._tables, self._n_key_heads)
            new = [self._key_heads(keys), self._key_heads(values)]
            present += [self._slice(one, self._start, n_conversation, 1) for one in new]
            before = (build.op("Squeeze", one, self._start) for one in past[2 * number : 2 * number + 2])
            keys, values = (build.op("Concat", *pair, axis=1) for pair in zip(before, new, strict=True))
            heard = self._attention(queries, keys, values, readers)
            (heard,) = arithmetic.linear(heard, {f"{attended}.o_proj": attention.o_proj.weight})
            norm = layer.post_attention_layernorm.weight
            normed, states = arithmetic.norm(states, heard, f"{name}.post_attention_layernorm", norm)
            added = self._mlp(f"{name}.mlp", layer.mlp, normed)
        normed, _ = arithmetic.norm(states, added, "norm", self._causal.model.norm.weight)
        self._answers(normed)
        kept = build.op("Concat", *(build.op("Unsqueeze", one, self._start) for one in present), axis=0)
        build.op("Cast", kept, output="present", to=onnx.TensorProto.FLOAT16)

    def _sizes(self, value: str, *axes: int) -> list[str]:
        """Sizes of a value's axes, int64 (1,) each."""
        shape = self._build.op("Shape", value)
        return [self._slice(shape, self._build.integers(axis), self._build.integers(axis + 1), 0) for axis in axes]

    def _slice(self, value: str, first: str, end: str, axis: int) -> str:
        return self._build.op("Slice", value, first, end, self._build.integers(axis))

    def _n_conversation(self) -> str:
        """How many of the new tokens are the conversation's, int64 (1,); they come first."""
        build = self._build
        ours = build.op("Equal", "segments", build.integers(CONVERSATION))
        return build.op("ReduceSum", build.op("Cast", ours, to=onnx.TensorProto.INT64), build.integers(1), keepdims=0)

    def _mask(self, n_past: str, n_new: str) -> str:
        """What each new token sees, float32 (new, past and new): 0, or a large negative number where it does not."""
        build = self._build
        scalar = build.op("Squeeze", n_new)
        order = build.op("Range", build.constant("none", 0, np.int64), scalar, build.constant("each", 1, np.int64))
        reader, read = build.integers(1), self._start
        before = build.op("LessOrEqual", build.op("Unsqueeze", order, read), build.op("Unsqueeze", order, reader))
        segments = build.op("Squeeze", "segments", self._start)
        others = build.op("Unsqueeze", segments, read)
        own = build.op("Equal", others, build.op("Unsqueeze", segments, reader))
        shared = build.op("Equal", others, build.integers(CONVERSATION))
        visible = build.op("And", before, build.op("Or", own, shared))
        seen, unseen = build.constant("seen", 0.0, np.float32), build.constant("unseen", MASKED, np.float32)
        among_new = build.op("Where", visible, seen, unseen)
        of_past = build.op("Expand", seen, build.op("Concat", n_new, n_past, axis=0))
        return build.op("Concat", of_past, among_new, axis=1)

    def _a_head(self, mask: str) -> str:
        """A mask with each row repeated for the heads that share keys."""
        build = self._build
        rows, keys = self._sizes(mask, 0, 1)
        repeated = build.op("Concat", rows, build.integers(self._group), keys, axis=0)
        expanded = build.op("Expand", build.op("Unsqueeze", mask, build.integers(1)), repeated)
        flat = build.op("Concat", build.op("Mul", rows, build.integers(self._group)), keys, axis=0)
        return build.op("Reshape", expanded, flat)

    def _embedded(self) -> str:
        """Embeddings of the new tokens (1, T, D), soft tokens in their places."""
        build = self._build
        words = self._arithmetic.embedding(self._causal.get_input_embeddings().weight, "input_ids")
        places = build.op("Unsqueeze", "soft_at", build.integers(1))
        rows = build.op("ScatterND", build.op("Squeeze", words, self._start), places, "soft_tokens")
        return build.op("Unsqueeze", rows, self._start)

    def _rotary_tables(self, positions: int) -> tuple[str, str]:
        """Cosines and sines, float32 (positions, head_dim / 2), as the model's own rotary embedding has them."""
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

    def _attention(self, queries: str, keys: str, values: str, readers: list[_Readers]) -> str:
        """queries: (1, R, heads * D), scaled. keys, values: (key heads, past and new, D). Returns: as the queries."""
        build = self._build
        split = build.op("Reshape", queries, build.integers(-1, self._n_key_heads, self._group, self._head_dim))
        together = build.integers(self._n_key_heads, -1, self._head_dim)
        # Heads that share keys stand below each other: one product a group.
        grouped = build.op("Reshape", build.op("Transpose", split, perm=[1, 0, 2, 3]), together)
        heard = []
        for reader in readers:
            asking, seen, told = grouped, keys, values
            if reader.first is not None and reader.end is not None:
                asking = self._slice(grouped, reader.first, reader.end, 1)
            if reader.n_keys is not None:
                seen, told = (self._slice(one, self._start, reader.n_keys, 1) for one in (keys, values))
            scores = build.op("MatMul", asking, build.op("Transpose", seen, perm=[0, 2, 1]))
            weights = build.op("Softmax", build.op("Add", scores, reader.mask), axis=-1)
            heard.append(build.op("MatMul", weights, told))
        rows = heard[0] if len(heard) == 1 else build.op("Concat", *heard, axis=1)
        apart = build.integers(self._n_key_heads, -1, self._group, self._head_dim)
        side_by_side = build.op("Transpose", build.op("Reshape", rows, apart), perm=[1, 0, 2, 3])
        return build.op("Reshape", side_by_side, build.integers(1, -1, self._n_heads * self._head_dim))

    def _mlp(self, name: str, mlp: Any, states: str) -> str:
        gate, up = self._arithmetic.linear(
            states, {f"{name}.gate_proj": mlp.gate_proj.weight, f"{name}.up_proj": mlp.up_proj.weight}
        )
        product = self._build.op("Mul", self._arithmetic.swish(gate), up)
        (narrow,) = self._arithmetic.linear(product, {f"{name}.down_proj": mlp.down_proj.weight})
        return narrow

    def _answers(self, states: str) -> None:
        """states: (1, 2 * questions, D), the emotions' rows first."""
        build = self._build
        rows = build.ops("Split", build.op("Squeeze", states, self._start), n_outputs=2, axis=0, num_outputs=2)
        heads = {"emotion": self._packed.emotion_head, "cause": self._packed.cause_head}
        for row, (name, head) in zip(rows, heads.items(), strict=True):
            scores = build.op("MatMul", row, build.constant(f"{name}_head", head.numpy().T))
            build.op("LogSoftmax", scores, output=f"{name}_log_probabilities", axis=-1)

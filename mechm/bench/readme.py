"""The README's table of speeds, made from the newest committed results.

It stands between two marks and is never edited by hand: `python benchmarks/table.py` writes it, and a test compares.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from textwrap import TextWrapper
from typing import Any

from mechm_runtime.errors import InputError

BEGIN, END = "<!-- mechm bench: made by benchmarks/table.py -->", "<!-- end of mechm bench -->"

WIDTH = 120
"""Characters of a line of the README; a table's rows are longer."""
BEND = 0.95
"""Of the highest throughput."""

Results = Mapping[str, Any]


def with_table(readme: str, table: str) -> str:
    """The README with the table between its marks.

    Raises: InputError: it has not exactly one pair of marks.
    """
    if readme.count(BEGIN) != 1 or readme.count(END) != 1 or readme.index(BEGIN) > readme.index(END):
        raise InputError("the README has no place for the table", hint=f"add two lines: {BEGIN} and {END}")
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


def readme_table(found: Sequence[Results]) -> str:
    """The table of the newest results, with another one below it for everything else that was read in the same manner.

    found: documents, the newest first; those in which modalities were chosen stand behind.
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
    """The table and what stands below it, as Markdown without a line break at its end.

    others: whose speeds alone stand below the first table.
    """
    machine, *facts = _below(results)
    below = [*wrapped(machine), "", *(line for fact in facts for line in wrapped(f"- {fact}", indent="  "))]
    tables = [line for one in (results, *others) for line in (*_speeds(one), "")]
    return "\n".join([*tables, *below]).strip("\n")


def wrapped(sentence: str, indent: str = "") -> list[str]:
    """Lines of the README's width; the second and later ones are indented."""
    wrapper = TextWrapper(WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return wrapper.wrap(sentence)


def _speeds(results: Results) -> Iterator[str]:
    measured = results["single_stream"]
    if measured is None:
        return
    scored = {} if results["accuracy"] is None else {one["system"]: one for one in results["accuracy"]["systems"]}
    yield f"| {measured['conversation']} | ms p50 | p99 | of | times ours | weighted F1 | emotions right |"
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
        f"the most there is from {bend(one['together'])} on; {one['whole']['session_kb']:,.0f} kB a session."
    )


def bend(together: Sequence[Results]) -> int:
    """The fewest sessions that reach nearly all of the highest throughput: more of them only wait longer."""
    most = max(at["utterances_per_s"] for at in together)
    return min(int(at["n_sessions"]) for at in together if at["utterances_per_s"] >= BEND * most)


def _below(results: Results) -> Iterator[str]:
    """The machine, then a sentence on everything else that was measured."""
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
            f"Scores: {results['accuracy']['gold']}, the first {short['n_conversations']} conversations "
            f"({short['n_utterances']} utterances), text alone."
        )
    for one in results["stages"]:
        parts = ", ".join(f"{p['part']} {p['share']:.0%}" for p in one["parts"] if p["share"] and p["ms"] >= 5)
        yield f"{one['system']}: wall time {one['overhead']:.2f} times the model runs one after the other" + (
            f"; of what the machine can do, {parts} is reached." if parts else "."
        )
    for start in results["start"]:
        yield (
            f"{start['system']}, start to first result, {start['conversation']}: {start['first_s']:.2f} s, "
            f"{start['peak_mb']:,.0f} MB."
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

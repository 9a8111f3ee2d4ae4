"""The table in docs/benchmarks.md is what `benchmarks/table.py` makes of the newest results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from mechm.bench.figures import write_figures
from mechm.bench.readme import BEGIN, END, readme_table, saturation_point, table_of, with_table
from mechm.bench.results import read_results, results_of
from mechm_runtime.errors import InputError

SVG = "{http://www.w3.org/2000/svg}"


def results(made: str, p50_ms: float) -> dict[str, Any]:
    def system(name: str, is_rival: bool, p50_ms: float) -> dict[str, Any]:
        latency = {"n": 9, "p50_ms": p50_ms, "p90_ms": p50_ms, "p99_ms": 2 * p50_ms, "samples_ms": []}
        return {"system": name, "is_rival": is_rival, "llm": False, "latency": latency}

    return {
        "schema_version": 1,
        "made": made,
        "bundle_id": "small-1",
        "n_threads": 2,
        "machine": {"cpu": "A chip", "cores": 2.0, "versions": {"onnxruntime": "1.32.0"}},
        "single_stream": {
            "conversation": "10 utterances, text",
            "systems": [system("theirs", True, 10 * p50_ms), system("mechm, no Llama", False, p50_ms)],
            "speedups": [{"rival": "theirs", "own": "mechm, no Llama", "times": 10.04}],
        },
        "accuracy": None,
        "stages": [],
        "start": [],
        "offline": [],
        "server": [],
        "scaling": [],
        "session": [],
    }


def test_the_readme_shows_the_newest_results(repository: Path) -> None:
    """Results and README go together: with results committed the README has the marks, and between them this table."""
    readme = (repository / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    found = read_results(repository / "benchmarks" / "results")
    if found:
        assert readme == with_table(readme, readme_table(list(found.values())))
    else:
        assert BEGIN not in readme


def test_the_table_has_a_row_a_system_the_quickest_first() -> None:
    lines = table_of(results("2026-01-01", 12.0)).splitlines()
    assert lines[2].startswith("| **mechm, no Llama** | 12 | 24 | 9 |  |")
    assert lines[3].startswith("| theirs | 120 | 240 | 9 | **10.0** |")
    assert "A chip, 2 cores" in lines[5]


def test_what_was_read_on_request_stands_behind() -> None:
    scenes = results("2026-03-01", 40.0) | {"preset": "small", "modalities": ["text", "scene"]}
    plain, older = (results(made, 12.0) | {"preset": "small"} for made in ("2026-02-01", "2026-01-01"))
    other_bundle = scenes | {"bundle_id": "small-2"}
    shown = readme_table([scenes, other_bundle, plain]).splitlines()
    assert shown == table_of(plain, [scenes]).splitlines()
    rows = [line for line in shown if line.startswith("| **mechm")]
    assert [row.split(" | ")[1] for row in rows] == ["12", "40"]
    assert readme_table([plain, older]) == table_of(plain)
    assert readme_table([scenes]) == table_of(scenes)


def test_what_stands_below_the_table_has_the_width_of_the_readme() -> None:
    served = {"system": "mechm, no Llama", "bound_ms": 2000.0, "queries_per_s": 1.5}
    sessions = {
        "system": "mechm, no Llama",
        "whole": {"turn_ms": {"5": 90.0, "100": 101.4}, "session_kb": 405.0},
        "streamed": None,
        "together": [{"n_sessions": n, "utterances_per_s": rate} for n, rate in ((1, 9.0), (4, 12.0), (16, 12.2))],
    }
    below = table_of(results("2026-01-01", 12.0) | {"server": [served], "session": [sessions]}).splitlines()[5:]
    assert max(map(len, below)) <= 120
    text = " ".join(line.strip() for line in below)
    assert "- mechm, no Llama, newest utterance at turn 5 / 100, given whole: 90 / 101 ms." in text
    assert "9.0 / 12.0 / 12.2 utterances a second, the most there is from 4 on; 405 kB a session." in text
    assert "- mechm, no Llama, Poisson arrivals, p99 below 2 s: 1.50 conversations a second." in text


def test_only_what_stands_between_the_marks_is_replaced() -> None:
    readme = f"above\n{BEGIN}\nold\n{END}\nbelow\n"
    after = with_table(readme, "new")
    assert after == f"above\n{BEGIN}\n\nnew\n\n{END}\nbelow\n"
    assert with_table(after, "new") == after
    for broken in ("no marks", f"{END}\n{BEGIN}", f"{readme}{readme}"):
        with pytest.raises(InputError, match="no place"):
            with_table(broken, "new")


def test_the_command_writes_the_newest_and_checks(repository: Path, tmp_path: Path) -> None:
    for name, made, p50_ms in (("a", "2026-02-01", 5.0), ("b", "2026-01-01", 7.0)):
        (tmp_path / f"{name}.json").write_text(json.dumps(results(made, p50_ms)))
    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}\n{END}\n")
    command = [sys.executable, str(repository / "benchmarks" / "table.py"), "--results", str(tmp_path)]
    command += ["--readme", str(readme)]
    assert subprocess.run([*command, "--check"], capture_output=True, check=False).returncode == 1
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert "| **mechm, no Llama** | 5 | 10 |" in readme.read_text()
    assert subprocess.run([*command, "--check"], capture_output=True, check=False).returncode == 0


def test_a_folder_with_other_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(InputError, match=r"other\.json holds no results"):
        read_results(tmp_path)


def test_throughput_bends_where_more_sessions_bring_no_more() -> None:
    rates = {1: 3.0, 2: 5.0, 4: 9.6, 8: 10.0, 16: 9.9}
    assert saturation_point([{"n_sessions": n, "utterances_per_s": rate} for n, rate in rates.items()]) == 4


def test_results_are_read_as_they_were_written(repository: Path) -> None:
    found = read_results(repository / "benchmarks" / "results")
    for document in found.values():
        assert json.loads(results_of(document).to_json()) == document
    with pytest.raises(InputError, match="incomplete"):
        results_of({"made": "2026-01-01"})


def test_the_shipped_figures_are_those_of_the_shipped_results(repository: Path, tmp_path: Path) -> None:
    """Names and words, not bytes: those follow matplotlib's version."""
    folder = repository / "benchmarks" / "results"
    written = [path for one in read_results(folder).values() for path in write_figures(results_of(one), tmp_path)]
    assert sorted(path.name for path in written) == sorted(path.name for path in folder.glob("*.svg"))
    for path in written:
        drawn, shipped = (ElementTree.parse(file).getroot() for file in (path, folder / path.name))  # noqa: S314
        for tag in ("title", "desc"):
            assert drawn.findtext(f"{SVG}{tag}") == shipped.findtext(f"{SVG}{tag}")

"""Write the table of speeds, and the figures, from the results of `mechm bench` in benchmarks/results.

    mechm bench --out benchmarks/results ...
    python benchmarks/table.py            # --check writes nothing and fails where the page says something else
    python benchmarks/table.py --figures  # draws every figure again, too (needs mechm[bench])

It measures nothing. The table stands between two marks in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mechm.bench.figures import write_figures
from mechm.bench.readme import readme_table, with_table
from mechm.bench.results import read_results, results_of

REPOSITORY = Path(__file__).resolve().parent.parent


def main() -> None:
    """Rewrite the block, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=REPOSITORY / "benchmarks" / "results")
    parser.add_argument("--readme", type=Path, default=REPOSITORY / "docs" / "benchmarks.md")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the page differs")
    parser.add_argument("--figures", action="store_true", help="draw the figures of every result again")
    given = parser.parse_args()
    found = read_results(given.results)
    if not found:
        parser.error(f"no results in {given.results}: mechm bench --out {given.results}")
    before = given.readme.read_text(encoding="utf-8")
    after = with_table(before, readme_table(list(found.values())))
    if given.check:
        sys.exit(
            f"{given.readme.name} does not show {given.results}: python benchmarks/table.py" if before != after else 0
        )
    given.readme.write_text(after, encoding="utf-8")
    print(f"{given.readme.name} shows {given.results}")
    if given.figures:
        for document in found.values():
            for path in write_figures(results_of(document), given.results):
                print(f"wrote {path}")


if __name__ == "__main__":
    main()

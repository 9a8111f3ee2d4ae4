"""Write the README's table of speeds from the newest results of `mechm bench`.

    mechm bench --out benchmarks/results ...
    python benchmarks/table.py            # --check writes nothing and fails where the README says something else

It measures nothing. What is written stands between two marks in README.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mechm.bench.readme import readme_table, with_table
from mechm.bench.results import read_results

REPOSITORY = Path(__file__).resolve().parent.parent


def main() -> None:
    """Rewrite the block, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=REPOSITORY / "benchmarks" / "results")
    parser.add_argument("--readme", type=Path, default=REPOSITORY / "README.md")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the README differs")
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


if __name__ == "__main__":
    main()

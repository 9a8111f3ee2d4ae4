"""A command of `mechm` in a process of its own that tells its peak of memory at the end: `start` runs it.

python -m mechm.bench.first_result analyze conversation.json --json -
"""

from __future__ import annotations

import sys

PEAK = "peak resident bytes:"


def main() -> None:
    """Run the command line that was given, then say the peak on standard error."""
    from mechm.bench.machine import peak_resident_bytes
    from mechm.cli import main as mechm

    code: object = 0
    try:
        mechm(sys.argv[1:])
    except SystemExit as ended:
        code = ended.code
    sys.stdout.flush()
    sys.stderr.write(f"\n{PEAK} {peak_resident_bytes() or 0}\n")
    raise SystemExit(code)


if __name__ == "__main__":
    main()

"""Runs one `mechm` command in this process and reports the process's peak memory at the end, for `start`.

    python -m mechm.bench.first_result analyze conversation.json --json -

The command is found as a shell finds it, by the package's entry point, so that nothing here imports the command line.
"""

from __future__ import annotations

import sys
from importlib.metadata import distribution

PEAK = "peak resident bytes:"


def main() -> None:
    """Run the command line that was given, then write the peak to standard error."""
    from mechm.bench.machine import peak_resident_bytes

    (command,) = distribution("mechm").entry_points.select(group="console_scripts", name="mechm")
    mechm = command.load()
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

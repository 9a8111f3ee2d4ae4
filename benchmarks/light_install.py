"""Measures the light install: disk, import time, time to the first result, memory.

Makes a fresh virtual environment in a temporary folder, installs mechm from this checkout with the extras `cpu` and
`media` and measures

- the size of site-packages, in total and of the largest packages (without pip and setuptools, which every environment
  has);
- `import mechm_runtime`, in fresh processes, minus the start of Python itself;
- with --bundle, --input and --transcript: the time from the start of the process to the first result of `mechm
  analyze`, and the process's peak resident memory.

Limits to expect: Python starts in about 15 ms and numpy imports in 60 to 100 ms, so no import of MECHM can be faster;
onnxruntime alone takes about 50 MB on disk. The first run of each measurement, which fills the disk cache and writes
.pyc files, is not counted. Prints a table and one JSON line.

    python benchmarks/light_install.py
    python benchmarks/light_install.py --bundle DIR --input call.wav --transcript call.stm
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of repeated runs of one command, and the largest peak resident memory among them.

    On Linux a child's peak starts at its parent's, so `peak_rss_bytes` below this script's own 20 MB has no meaning.
    """

    p50_s: float
    best_s: float
    worst_s: float
    n_runs: int
    peak_rss_bytes: int


def make_environment(folder: Path, extras: str, pip_arguments: Sequence[str]) -> Path:
    """Make an environment in `folder` with mechm and its extras; returns its Python."""
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    target = f"{REPOSITORY}[{extras}]"
    subprocess.run([python, "-m", "pip", "install", "--quiet", *pip_arguments, target], check=True)
    return python


def package_sizes(python: Path) -> dict[str, int]:
    """Bytes on disk by entry of site-packages, largest first, without pip and setuptools."""
    answer = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    )
    site_packages = Path(answer.stdout.strip())
    sizes: dict[str, int] = {}
    for entry in site_packages.iterdir():
        name = entry.name.partition("-")[0].removesuffix(".libs")
        if name in {"pip", "setuptools", "pkg_resources", "_distutils_hack", "distutils"}:
            continue
        files = entry.rglob("*") if entry.is_dir() else [entry]
        # .pyc files are left out: whether they exist depends on what was imported before.
        sizes[name] = sizes.get(name, 0) + sum(
            file.stat().st_size for file in files if file.is_file() and file.suffix != ".pyc"
        )
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def time_command(command: Sequence[str | Path], n_runs: int) -> Times:
    """Run a command once unmeasured and then `n_runs` times; wall-clock from start to exit.

    Raises: subprocess.CalledProcessError: it failed.
    """
    seconds, peaks = [], []
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for _ in range(n_runs + 1):
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        seconds.append(time.perf_counter() - started)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise subprocess.CalledProcessError(process.returncode, [str(word) for word in command])
        peaks.append(usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
    measured = seconds[1:]
    return Times(statistics.median(measured), min(measured), max(measured), n_runs, max(peaks))


def versions(python: Path) -> dict[str, str]:
    """Versions by distribution in the new environment."""
    code = (
        "import json; from importlib.metadata import distributions as d;"
        "print(json.dumps({x.metadata['Name']: x.version for x in d()}))"
    )
    answer = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
    found: dict[str, str] = json.loads(answer.stdout)
    return dict(sorted(found.items()))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extras", default="cpu,media")
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--input", type=Path)
    parser.add_argument("--transcript", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument(
        "--pip", action="append", default=[], metavar="ARG", help="passed to pip install; may be repeated"
    )
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        python = make_environment(Path(folder) / "venv", options.extras, options.pip)
        install_s = time.perf_counter() - started
        sizes = package_sizes(python)
        installed = versions(python)
        bare = time_command([python, "-c", ""], options.runs)
        imported = time_command([python, "-c", "import mechm_runtime"], options.runs)
        first = None
        if options.input:
            command: list[str | Path] = [python.with_name("mechm"), "analyze", options.input.resolve()]
            if options.transcript:
                command += ["--transcript", options.transcript.resolve()]
            if options.bundle:
                command += ["--bundle", options.bundle.resolve()]
            first = time_command(command, options.runs)

    total_bytes = sum(sizes.values())
    rows = [("install, with download", f"{install_s:.0f} s"), ("site-packages", f"{total_bytes / 1e6:.0f} MB")]
    rows += [(f"  {name}", f"{size / 1e6:.1f} MB") for name, size in list(sizes.items())[:8]]
    rows += [
        ("python -c ''", f"{bare.p50_s * 1000:.0f} ms"),
        ("import mechm_runtime", f"{(imported.p50_s - bare.p50_s) * 1000:.0f} ms more"),
    ]
    if first:
        rows += [
            ("start to first result", f"{first.p50_s:.2f} s (best {first.best_s:.2f}, worst {first.worst_s:.2f})"),
            ("  peak memory", f"{first.peak_rss_bytes / 1e6:.0f} MB"),
        ]
    width = max(len(name) for name, _ in rows)
    print(f"mechm[{options.extras}], {platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
    print(
        json.dumps(
            {
                "extras": options.extras,
                "platform": platform.platform(),
                "n_cores": os.cpu_count(),
                "python": platform.python_version(),
                "versions": installed,
                "install_s": round(install_s, 1),
                "site_packages_bytes": total_bytes,
                "package_bytes": sizes,
                "python_start": asdict(bare),
                "import": asdict(imported),
                "import_ms": round((imported.p50_s - bare.p50_s) * 1000, 1),
                "first_result": asdict(first) if first else None,
            }
        )
    )


if __name__ == "__main__":
    main()

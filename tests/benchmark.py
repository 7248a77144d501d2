"""Measure the time and memory of runs against a local server with a chosen delay.

Run by hand: python tests/benchmark.py
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from services import DAY, KEY, TOKEN, Oura, Petals, local_server

SCRIPT = Path(__file__).parents[1] / "oura_to_petals.py"


class Measured(NamedTuple):
    seconds: list[float]
    processor: list[float]  # seconds, user and system
    memory: list[float]  # MiB at the peak


def measure(command: list[str], times: int, env: dict[str, str]) -> Measured:
    """Run a Python command several times."""
    measured = Measured([], [], [])
    for _ in range(times):
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *command], env=env, stdout=subprocess.DEVNULL, cwd=env["HOME"]
        )
        _, status, usage = os.wait4(process.pid, 0)
        measured.seconds.append(time.perf_counter() - started)
        measured.processor.append(usage.ru_utime + usage.ru_stime)
        measured.memory.append(usage.ru_maxrss / 1024)
        if status:
            raise SystemExit(f"{command} ended with status {status}")
    return measured


def row(name: str, measured: Measured, requests: str = "") -> Measured:
    """Print a row of the table."""
    middle, processor = map(statistics.median, measured[:2])
    spread = f"{min(measured.seconds):.3f} to {max(measured.seconds):.3f}"
    numbers = f"{middle:.3f} | {spread} | {processor:.3f} | {requests} | {max(measured.memory):.0f}"
    print(f"| {name} | {numbers} |", flush=True)
    return measured


def run_days(days: int, delay: float, times: int, home: str) -> tuple[Measured, float]:
    """Measure a run of some days against a server that delays each answer."""
    oura, petals = Oura(), Petals()
    oura.fill(days)
    with local_server(oura, petals, delay=delay) as host:
        env = {"HOME": home, "OURA_TOKEN": TOKEN, "PETALS_API_KEY": KEY}
        env |= {"OURA_HOST": host, "PETALS_HOST": host}
        command = [str(SCRIPT), "--date", str(DAY), "--days", str(days)]
        measured = measure(command, times, env)
    return measured, (len(oura.requests) + len(petals.requests)) / times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=15, help="runs of each short measure")
    parser.add_argument("--long", type=int, default=3, help="runs of each long measure")
    times = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as home:
        env = {"HOME": home}
        print("| | median s | spread s | processor s | requests | peak MiB |")
        print("|---|---|---|---|---|---|")
        bare = row("`import httpx`", measure(["-c", "import httpx"], times.times, env))
        with_tls = "import httpx; httpx.create_ssl_context()"
        least = row(f"`{with_tls}`", measure(["-c", with_tls], times.times, env))
        row("`--help`", measure([str(SCRIPT), "--help"], times.times, env))
        row("`--demo`", measure([str(SCRIPT), "--demo"], times.times, env))
        found = {}
        for days, delay in [(1, 0.0), (1, 0.1), (365, 0.0), (365, 0.05), (3650, 0.0)]:
            often = times.times if days == 1 else times.long if days == 365 else 1
            measured, requests = run_days(days, delay, often, home)
            name = f"{days} day{'s' if days > 1 else ''} at {delay * 1000:.0f} ms"
            found[days, delay] = row(name, measured, f"{requests:g}")
        seconds = {key: statistics.median(one.seconds) for key, one in found.items()}
        beyond = (seconds[1, 0.1] - statistics.median(bare.seconds)) / 0.1
        print(f"\n1 day at 100 ms: {beyond:.2f} round trips more than `import httpx`")
        print(f"365 days at 50 ms: {seconds[365, 0.05] / 0.05 / 365:.2f} round trips a day")
        print(f"365 days at 0 ms: {seconds[365, 0.0] / 365 * 1000:.1f} ms a day")
        ratio = statistics.median(found[1, 0.0].processor) / statistics.median(least.processor)
        print(f"1 day at 0 ms: {ratio:.2f} times the processor time of `{with_tls}` (aim: 1.4)")


if __name__ == "__main__":
    main()

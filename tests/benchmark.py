"""How long a run takes and how much it holds, against a local server of a chosen latency.

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

from services import DAY, KEY, TOKEN, Oura, Petals, local_server

SCRIPT = Path(__file__).parents[1] / "oura_to_petals.py"


def measure(command: list[str], times: int, env: dict[str, str]) -> tuple[list[float], float]:
    """Seconds of each run, and the most memory of one in MiB."""
    seconds, memory = [], 0.0
    for _ in range(times):
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *command], env=env, stdout=subprocess.DEVNULL, cwd=env["HOME"]
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds.append(time.perf_counter() - started)
        if status:
            raise SystemExit(f"{command} ended with status {status}")
        memory = max(memory, usage.ru_maxrss / 1024)
    return seconds, memory


def row(name: str, measured: tuple[list[float], float], requests: float | str = "") -> float:
    seconds, memory = measured
    middle = statistics.median(seconds)
    spread = f"{min(seconds):.3f} to {max(seconds):.3f}"
    print(f"| {name} | {middle:.3f} | {spread} | {requests} | {memory:.0f} |", flush=True)
    return middle


def run_days(days: int, delay: float, times: int, home: str) -> tuple[tuple, float]:
    """A run of so many days on a server that takes this long for each answer."""
    oura, petals = Oura(), Petals()
    oura.fill(days)
    with local_server(oura, petals, delay=delay) as host:
        env = {
            "HOME": home,
            "OURA_TOKEN": TOKEN,
            "PETALS_API_KEY": KEY,
            "OURA_HOST": host,
            "PETALS_HOST": host,
        }
        command = [str(SCRIPT), "--date", str(DAY), "--days", str(days)]
        measured = measure(command, times, env)
    return measured, (len(oura.requests) + len(petals.requests)) / times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=15, help="runs of each short measure")
    parser.add_argument("--long", type=int, default=3, help="runs of each long one")
    times = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as home:
        env = {"HOME": home}
        print("| | median s | spread s | requests | peak MiB |\n|---|---|---|---|---|")
        bare = row("`import httpx`", measure(["-c", "import httpx"], times.times, env))
        row("`--help`", measure([str(SCRIPT), "--help"], times.times, env))
        row("`--demo`", measure([str(SCRIPT), "--demo"], times.times, env))
        found = {}
        for days, delay in [(1, 0.0), (1, 0.1), (365, 0.0), (365, 0.05), (3650, 0.0)]:
            often = times.times if days == 1 else times.long if days == 365 else 1
            measured, requests = run_days(days, delay, often, home)
            name = f"{days} day{'s' if days > 1 else ''} at {delay * 1000:.0f} ms"
            found[days, delay] = row(name, measured, f"{requests:g}")
        beyond = (found[1, 0.1] - bare) / 0.1
        print(f"\na day at 100 ms: {beyond:.2f} round trips beyond import httpx")
        print(f"365 days at 50 ms: {found[365, 0.05] / 0.05 / 365:.2f} round trips a day")
        print(f"365 days at 0 ms: {found[365, 0.0] / 365 * 1000:.1f} ms a day")


if __name__ == "__main__":
    main()

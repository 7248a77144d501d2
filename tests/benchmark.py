"""Measure runs as a user has them, by hand: python tests/benchmark.py."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from datetime import date
from operator import sub, truediv
from pathlib import Path

from fakes import BULK, KEY, LIST, TOKEN, ArrayPetals, FakeServer, Oura, Petals, local_server

SCRIPT = Path(__file__).parents[1] / "oura_to_petals.py"
WITH_TLS = "import httpx; httpx.create_ssl_context()"
TODAY = ["--date", "today"]

# A process of its own starts each command: the peak of a process is at least the memory of the one
# that started it, and this one is large.
STARTER = """
import json, os, sys, time
nowhere = (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)
started = time.perf_counter()
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=[nowhere])
_, status, usage = os.wait4(pid, 0)
seconds = time.perf_counter() - started
print(json.dumps([status, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss]))
"""


class Measure:
    """A command, and what each of its runs took."""

    def __init__(self, name: str, command: list[str], *servers: FakeServer) -> None:
        self.name, self.command, self.servers = name, command, servers
        self.runs: list[tuple[float, float, float, int]] = []

    def run(self, env: dict[str, str]) -> None:
        for server in self.servers:
            server.requests.clear()
        start = [sys.executable, "-I", "-S", "-c", STARTER, *self.command]
        done = subprocess.run(start, env=env, cwd=env["HOME"], capture_output=True, check=True)
        status, seconds, processor, peak = json.loads(done.stdout)
        if status:
            raise SystemExit(f"{self.command} failed: {done.stderr.decode()}")
        memory = peak / (2**20 if sys.platform == "darwin" else 2**10)
        requests = sum(len(server.requests) for server in self.servers)
        self.runs.append((seconds, processor, memory, requests))

    def column(self, number: int) -> list[float]:
        """The seconds (0), the processor's seconds (1), or the MiB at the peak (2) of each run."""
        return [run[number] for run in self.runs]

    def __str__(self) -> str:
        """A row of the table."""
        middle, processor = map(statistics.median, (self.column(0), self.column(1)))
        spread = f"{min(self.column(0)):.3f} to {max(self.column(0)):.3f}"
        memory, requests = max(self.column(2)), self.runs[-1][3] or ""
        numbers = f"{middle:.3f} | {spread} | {processor:.3f} | {requests} | {memory:.0f}"
        return f"| {self.name} | {numbers} |"


def measure_in_turns(measures: list[Measure], rounds: int, env: dict[str, str]) -> None:
    """Run each command once a round, so that a busy minute slows all of them down."""
    for number in range(rounds):
        first = number % len(measures)
        for measure in [*measures[first:], *measures[:first]]:
            measure.run(env)
    for measure in measures:
        print(measure, flush=True)


class Served:
    """An Oura with the nights up to today, and a Petals, that delay each answer."""

    def __init__(self, stack: ExitStack, home: Path, petals: FakeServer, delay: float = 0) -> None:
        self.oura, self.petals = Oura(), petals
        self.oura.fill(365, date.today())
        host = stack.enter_context(local_server(self.oura, petals, delay=delay))
        file = home / f"{delay} {type(petals).__name__}.env"
        text = f"OURA_TOKEN={TOKEN}\nPETALS_API_KEY={KEY}\nOURA_HOST={host}\nPETALS_HOST={host}\n"
        file.touch(0o600)
        file.write_text(text)
        self.options = ["--env-file", str(file)]

    def measure(self, name: str, program: list[str], days: int) -> Measure:
        command = [*program, *TODAY, "--days", str(days), *self.options]
        return Measure(f"{name}, {days} days", command, self.oura, self.petals)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="rounds of the short measures")
    parser.add_argument("--long", type=int, default=3, help="rounds of the long measures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        home = Path(folder)
        env = {"HOME": str(home), "PATH": os.environ["PATH"]}
        script = [sys.executable, shutil.copy(SCRIPT, home)]
        near, far = (Served(stack, home, Petals(), delay) for delay in (0, 0.1))
        guide = Served(stack, home, ArrayPetals())
        bare = Measure("`import httpx`", [sys.executable, "-c", "import httpx"])
        with_tls = Measure(f"`{WITH_TLS}`", [sys.executable, "-c", WITH_TLS])
        morning = near.measure("script, 0 ms", script, 1)
        slow_morning = far.measure("script, 100 ms", script, 1)
        year = Served(stack, home, Petals(), 0.05).measure("script, 50 ms", script, 365)

        print(f"Python {sys.version.split()[0]}, {options.rounds} rounds, HOME and PATH alone.")
        print("So all is compiled but the script. Each run ends today.\n")
        print("| | median s | spread s | processor s | requests | peak MiB |")
        print("|---|---|---|---|---|---|")
        short = [bare, with_tls, morning, slow_morning]
        for measure in short:  # fill the caches
            measure.run(env)
            measure.runs.clear()
        measure_in_turns(short, options.rounds, env)
        measure_in_turns([year], options.long, env)

        times = statistics.median(map(truediv, morning.column(1), with_tls.column(1)))
        print(f"\n{times:.2f} times the processor time of `{WITH_TLS}` (aim: 1.28)")
        beyond = statistics.median(map(sub, slow_morning.column(0), bare.column(0))) / 0.1
        print(f"{beyond:.2f} round trips beyond `import httpx` (aim: 2.9)")
        trips = statistics.median(year.column(0)) / 365 / 0.05
        print(f"365 days: {trips:.2f} round trips a day (aim: 1.1)")
        for name, by_date in (("today", TODAY), ("by date", ["--date", str(date.today())])):
            Measure("", [*script, *by_date, "--days", "7", *guide.options], guide.petals).run(env)
            sent = f"{len(guide.petals.asked(BULK))} bulk, {len(guide.petals.asked(LIST))} list"
            print(f"a server of the guide, 7 days, {name}: {sent} (aim: 7, by date 8 bulk)")
            guide.petals.requests.clear()


if __name__ == "__main__":
    main()

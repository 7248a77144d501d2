"""Measure the time, processor time and memory of runs, as a user has them.

Run by hand: python tests/benchmark.py [--command PATH]
"""

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
from operator import sub, truediv
from pathlib import Path

from fakes import DAY, KEY, TOKEN, Oura, Petals, local_server

SCRIPT = Path(__file__).parents[1] / "oura_to_petals.py"
WITH_TLS = "import httpx; httpx.create_ssl_context()"

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

    def __init__(self, name: str, command: list[str], requests: int = 0) -> None:
        self.name, self.command, self.requests = name, command, requests
        self.seconds: list[float] = []
        self.processor: list[float] = []  # seconds, user and system
        self.memory: list[float] = []  # MiB at the peak

    def run(self, env: dict[str, str]) -> None:
        start = [sys.executable, "-I", "-S", "-c", STARTER, *self.command]
        done = subprocess.run(start, env=env, cwd=env["HOME"], capture_output=True, check=True)
        status, seconds, processor, peak = json.loads(done.stdout)
        if status:
            raise SystemExit(f"{self.command} failed: {done.stderr.decode()}")
        self.seconds.append(seconds)
        self.processor.append(processor)
        self.memory.append(peak / (2**20 if sys.platform == "darwin" else 2**10))

    def forget(self) -> None:
        for measured in (self.seconds, self.processor, self.memory):
            measured.clear()

    def __str__(self) -> str:
        """A row of the table."""
        middle, processor = statistics.median(self.seconds), statistics.median(self.processor)
        spread = f"{min(self.seconds):.3f} to {max(self.seconds):.3f}"
        numbers = f"{middle:.3f} | {spread} | {processor:.3f}"
        return f"| {self.name} | {numbers} | {self.requests or ''} | {max(self.memory):.0f} |"


def measure_in_turns(measures: list[Measure], rounds: int, env: dict[str, str]) -> None:
    """Run each command once a round, so that a busy minute slows all of them down."""
    for number in range(rounds):
        first = number % len(measures)
        for measure in [*measures[first:], *measures[:first]]:
            measure.run(env)
    for measure in measures:
        print(measure, flush=True)


def serve(stack: ExitStack, home: Path, days: int, delay: float) -> list[str]:
    """Start servers that delay each answer; return the options that send so many days to them."""
    oura, petals = Oura(), Petals()
    oura.fill(days)
    host = stack.enter_context(local_server(oura, petals, delay=delay))
    file = home / f"{days} at {delay}.env"
    file.touch(0o600)
    file.write_text(
        f"OURA_TOKEN={TOKEN}\nPETALS_API_KEY={KEY}\nOURA_HOST={host}\nPETALS_HOST={host}\n"
    )
    return ["--date", str(DAY), "--days", str(days), "--env-file", str(file)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="rounds of the short measures")
    parser.add_argument("--long", type=int, default=3, help="rounds of the long measures")
    parser.add_argument("--command", type=Path, help="measure this installed command, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        home = Path(folder)
        env = {"HOME": str(home), "PATH": os.environ["PATH"]}
        programs = {"script": [sys.executable, shutil.copy(SCRIPT, home)]}
        if options.command:
            programs["command"] = [str(options.command.absolute())]
        morning, slow_morning = (serve(stack, home, 1, delay) for delay in (0, 0.1))
        year, slow_year = (serve(stack, home, 365, delay) for delay in (0, 0.05))
        bare = Measure("`import httpx`", [sys.executable, "-c", "import httpx"])
        with_tls = Measure(f"`{WITH_TLS}`", [sys.executable, "-c", WITH_TLS])
        helps, mornings, slow_mornings = {}, {}, {}
        for name, program in programs.items():
            helps[name] = Measure(f"{name} --help", [*program, "--help"])
            mornings[name] = Measure(f"{name}, 1 day at 0 ms", [*program, *morning], 5)
            slow_mornings[name] = Measure(f"{name}, 1 day at 100 ms", [*program, *slow_morning], 5)
        years = [
            Measure("script, 365 days at 0 ms", [*programs["script"], *year], 369),
            Measure("script, 365 days at 50 ms", [*programs["script"], *slow_year], 369),
        ]

        print(f"Python {sys.version.split()[0]}, {options.rounds} rounds of each command once. The")
        print("environment of a command is HOME and PATH alone: PYTHONDONTWRITEBYTECODE is off, so")
        print("all but the script itself is compiled.\n")
        print("| | median s | spread s | processor s | requests | peak MiB |")
        print("|---|---|---|---|---|---|", flush=True)
        short = [bare, with_tls, *helps.values(), *mornings.values(), *slow_mornings.values()]
        for measure in short:  # fill the caches
            measure.run(env)
            measure.forget()
        measure_in_turns(short, options.rounds, env)
        measure_in_turns(years, options.long, env)

        aims = {"script": 1.25, "command": 1.18}
        for name in programs:
            ratios = map(truediv, mornings[name].processor, with_tls.processor)
            print(f"\n{name}, 1 day at 0 ms: {statistics.median(ratios):.2f} times the", end=" ")
            print(f"processor time of `{WITH_TLS}` (aim: {aims[name]})")
            beyond = statistics.median(map(sub, slow_mornings[name].seconds, bare.seconds))
            print(f"{name}, 1 day at 100 ms: {beyond / 0.1:.2f} round trips", end=" ")
            print("beyond `import httpx` (aim: 2.9)")
        fast, slow = (statistics.median(measure.seconds) / 365 for measure in years)
        print(f"\nscript, 365 days at 0 ms: {fast * 1000:.1f} ms a day")
        print(f"script, 365 days at 50 ms: {slow / 0.05:.2f} round trips a day")


if __name__ == "__main__":
    main()

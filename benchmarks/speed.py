"""widelimit beside its peer, Neural Tangents, and the machine.

    python benchmarks/speed.py [--peer PYTHON] [--json FILE] [NAME ..]

times the workloads of `workloads.py` (those whose names contain a NAME; all if none is
given), float32, through `widelimit.stax`; and, with the PYTHON of an environment that
has it, through `neural_tangents.stax`. Every library has a process of its own; calls of
both alternate, and the table has their medians, the first call apart. The peer runs as
it is, in its fastest documented way, and again with a flag of XLA that nobody would
know. Before it: what the machine can do.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
import types
from typing import Any

import numpy as np

FLAG = "--xla_disable_hlo_passes=convolution-canonicalization"
PEER, FLAGGED = "neural_tangents", "neural_tangents, with a flag"


def library(name: str) -> Any:
    """What workloads use of widelimit, or of its peer."""
    if name == "widelimit":
        from widelimit import batch, empirical_ntk_fn, predict, stax

        return types.SimpleNamespace(
            stax=stax, predict=predict, batch=batch, jitted=lambda f: f,
            empirical=lambda f, axes: empirical_ntk_fn(f, trace_axes=axes),
        )  # fmt: skip
    import jax
    import neural_tangents as nt

    return types.SimpleNamespace(
        stax=nt.stax, predict=nt.predict, batch=nt.batch,
        jitted=lambda f: jax.jit(f, static_argnums=(2,)),
        empirical=lambda f, axes: nt.empirical_ntk_fn(f, trace_axes=axes),
    )  # fmt: skip


def worker(name: str, workload: str, way: str) -> None:
    """Answers every line with the seconds of one call, the first one included."""
    import jax
    from workloads import WORKLOADS

    chosen = WORKLOADS[workload]
    run = (chosen.peer[way] if way else chosen.make)(library(name))
    before = resident_mb()
    for _ in sys.stdin:
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds = time.perf_counter() - start
        # The most since the process began, which its imports do not reach.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
        print(json.dumps({"seconds": seconds, "peak_mb": peak}), flush=True)


def resident_mb() -> float:
    """The memory of this process now (Linux)."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


class Process:
    """A worker, and what it said."""

    def __init__(self, python: str, name: str, workload: str, way: str) -> None:
        env = dict(os.environ, JAX_PLATFORMS=os.environ.get("JAX_PLATFORMS", "cpu"))
        if name == FLAGGED:
            env["XLA_FLAGS"] = f"{env.get('XLA_FLAGS', '')} {FLAG}".strip()
        module = name.split(",")[0]
        command = [python, __file__, "--worker", module, workload, way]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, env=env,
        )  # fmt: skip
        self.seconds: list[float] = []
        self.peak_mb = 0.0

    def call(self) -> bool:
        """Time one call; whether it came to an end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            return False
        found = json.loads(answer)
        self.seconds.append(found["seconds"])
        self.peak_mb = found["peak_mb"]
        return True

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def compared(workload: str, peer: str | None) -> dict[str, Any]:
    """The times of one workload, by library."""
    from workloads import WORKLOADS

    chosen = WORKLOADS[workload]
    asked = [("widelimit", sys.executable, "")]
    if peer:
        ways = ["", *chosen.peer]
        asked += [(PEER, peer, way) for way in ways] + [(FLAGGED, peer, "")]
    running = {
        (name, way): Process(python, name, workload, way) for name, python, way in asked
    }
    try:
        ended = {key: p.call() for key, p in running.items()}
        for _ in range(chosen.runs):
            for key, p in running.items():
                ended[key] = ended[key] and p.call()
    finally:
        for p in running.values():
            p.stop()
    found: dict[str, Any] = {}
    for (name, way), p in running.items():
        if not ended[name, way]:
            continue
        median = statistics.median(p.seconds[1:])
        if name not in found or median < found[name]["seconds"]:
            found[name] = {
                "seconds": median, "first": p.seconds[0], "peak_mb": p.peak_mb,
                "way": way,
            }  # fmt: skip
    return found


def machine() -> dict[str, float]:
    """GFlop/s of products and of multiply-adds in the cache, GB/s of memory."""
    import jax
    import jax.numpy as jnp

    def seconds(f: Any, *args: Any) -> float:
        f(*args)
        times = []
        for _ in range(5):
            start = time.perf_counter()
            jax.block_until_ready(f(*args))
            times.append(time.perf_counter() - start)
        return min(times)

    rng = np.random.default_rng(0)
    a = rng.normal(size=(3000, 3000)).astype(np.float32)
    big, out = np.ones(2**26, np.float32), np.empty(2**26, np.float32)
    steps, lanes = 4096, jnp.ones((2, 8192), jnp.float32)

    @jax.jit
    def multiply_add(x: Any) -> Any:
        def step(_: Any, x: Any) -> Any:
            for _ in range(16):
                x = x * np.float32(0.999) + np.float32(0.001)
            return x

        return jax.lax.fori_loop(0, steps, step, x)

    return {
        "product_gflops": 2 * 3000**3 / seconds(np.matmul, a, a) / 1e9,
        "multiply_add_gflops": 32
        * steps
        * lanes.size
        / seconds(multiply_add, lanes)
        / 1e9,
        "memory_gb_per_s": 8 * 2**26 / seconds(np.add, big, 1, out) / 1e9,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", metavar="PYTHON")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("names", nargs="*")
    given = parser.parse_args()
    from workloads import WORKLOADS

    chosen = [
        w for w in WORKLOADS if not given.names or any(n in w for n in given.names)
    ]
    limits = machine()
    report: dict[str, Any] = {
        "machine": platform.processor(),
        **limits,
        "workloads": {},
    }
    print(", ".join(f"{k.replace('_', ' ')}: {v:.0f}" for k, v in limits.items()))
    print("| workload | ms | first call (s) | memory (MB) | peer (ms) | first | ratio |"
          " ratio with a flag |\n|---|---|---|---|---|---|---|---|")  # fmt: skip
    for workload in chosen:
        found = report["workloads"][workload] = compared(workload, given.peer)
        print(_row(workload, found), flush=True)
        if given.json:
            with open(given.json, "w") as file:
                json.dump(report, file, indent=1)


def _row(workload: str, found: dict[str, Any]) -> str:
    cells = [workload]
    ours = found.get("widelimit")
    cells += (
        ["failed", "", ""]
        if ours is None
        else [f"{1e3 * ours['seconds']:.1f}", f"{ours['first']:.2f}",
              f"{ours['peak_mb']:.0f}"]
    )  # fmt: skip
    peer = found.get(PEER)
    cells += ["", ""] if peer is None else [
        f"{1e3 * peer['seconds']:.1f}", f"{peer['first']:.2f}"
    ]  # fmt: skip
    for name in (PEER, FLAGGED):
        both = ours is not None and name in found
        cells.append(f"{found[name]['seconds'] / ours['seconds']:.2f}" if both else "")
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(*sys.argv[2:5])
    else:
        main()

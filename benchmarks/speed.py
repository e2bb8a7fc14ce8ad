"""widelimit beside its peer, Neural Tangents, and the machine.

    python benchmarks/speed.py [--peer PYTHON] [--json FILE] [NAME ..]

times the workloads of `workloads.py` (those whose names contain a NAME; all if none
is given), float32, through `widelimit.stax` and as ordinary functions through
`wl.limit`; and, with the PYTHON of an environment that has it, through
`neural_tangents.stax`. Each has a process of its own; calls of all alternate, and the
table has their medians, the first call apart. The peer runs as it is, in its fastest
documented way, and again with a flag of XLA that nobody would know. Above the table:
what the machine can do.

Memory is what the second call takes at the most beside what was there before it,
results included. "To the limit" is the time over that of the product of the inputs
alone, and the time of one number in the covariances of all pairs in one layer. A call
that takes longer than `--limit` seconds has failed.

All run on the CPU; on a GPU with JAX_PLATFORMS=cuda.
"""

import argparse
import ctypes
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from workloads import WORKLOADS, product

FLAG = "--xla_disable_hlo_passes=convolution-canonicalization"
LAYERS, FUNCTIONS, PRODUCT = "widelimit", "widelimit, functions", "product"
PEER, FLAGGED = "neural_tangents", "neural_tangents, with a flag"
# Two 3 x 3 sums (of 2 + 2 terms each), and relu's formulas with their scales.
OPERATIONS = 47
COLUMNS = """workload, stax (ms), function (ms), first call (s), memory (MB),
to the limit, peer (ms), its first call (s), its memory (MB), ratio, function's ratio,
ratio with a flag"""


# In the process of a library ----------------------------------------------------------


def library(name: str) -> Any:
    """What workloads use of widelimit, or of its peer."""
    if name == PEER:
        return _peer()
    from widelimit import batch, empirical_ntk_fn, predict, stax

    def layers(network: Any, shape: tuple[int, ...], **settings: Any) -> Any:
        return network(stax, **settings)

    return types.SimpleNamespace(
        stax=stax, predict=predict, batch=batch, jitted=lambda f: f,
        kernel_fn=_function if name == FUNCTIONS else layers,
        empirical=empirical_ntk_fn,
    )  # fmt: skip


def _peer() -> Any:
    import neural_tangents as nt

    return types.SimpleNamespace(
        stax=nt.stax, predict=nt.predict, batch=nt.batch,
        jitted=lambda f: jax.jit(f, static_argnums=(2,)),
        kernel_fn=lambda network, shape, **settings: network(nt.stax, **settings),
        empirical=nt.empirical_ntk_fn,
    )  # fmt: skip


def _function(network: Any, shape: tuple[int, ...], **settings: Any) -> Any:
    """The kernels of the function that is the twin of a network in layers."""
    import functions

    import widelimit as wl

    net = wl.limit(*getattr(functions, network.__name__)(shape, **settings))

    def kernels(x1: Any, x2: Any = None, get: Any = ("nngp", "ntk")) -> Any:
        return getattr(net, get if isinstance(get, str) else "kernels")(x1, x2)

    return kernels


def worker(name: str, workload: str, way: str, limit: str) -> None:
    """Answers every line with the seconds of one call, the first one included."""
    # Ends this process, whatever it is doing then.
    signal.alarm(int(limit))
    chosen = WORKLOADS[workload]
    if name == PRODUCT:
        run = product(*chosen.product)
    else:
        run = (chosen.peer[way] if way else chosen.make)(library(name))
    for calls, _ in enumerate(sys.stdin):
        signal.alarm(int(limit))
        if calls < 2:
            # What is given back is missed by the call: not every time.
            forget_peak()
        before, start = memory_mb("VmRSS", "bytes_in_use"), time.perf_counter()
        jax.block_until_ready(run())
        seconds = time.perf_counter() - start
        peak = memory_mb("VmHWM", "peak_bytes_in_use") - before
        signal.alarm(0)
        print(json.dumps({"seconds": seconds, "peak_mb": peak}), flush=True)


def forget_peak() -> None:
    """Give back what is free, and let the peak be what is in use now (Linux)."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def memory_mb(host: str, device: str) -> float:
    """A number on the memory of this process (Linux), or of its GPU."""
    stats = jax.local_devices()[0].memory_stats()
    if stats:
        return stats[device] / 1e6
    lines = Path("/proc/self/status").read_text().splitlines()
    table = dict(line.split(":", 1) for line in lines)
    return int(table[host].split()[0]) * 1024 / 1e6


def machine() -> None:
    """Prints its name, GFlop/s of products and of multiply-adds, GB/s of memory."""
    from widelimit._jax import jit_for_cpu

    def seconds(f: Callable[[Any], Any], x: Any) -> float:
        """The least time of some calls, each on the result of the one before."""
        times = []
        for _ in range(8):
            start = time.perf_counter()
            x = jax.block_until_ready(f(x))
            times.append(time.perf_counter() - start)
        return min(times)

    # As the products that workloads are compared with.
    arrays = np if jax.default_backend() == "cpu" else jnp
    matrix = arrays.eye(3000, dtype=np.float32)
    large, small = jnp.zeros(2**26), jnp.ones(2**20)
    steps, terms = 64, 16

    def multiply_add(x: Any) -> Any:
        def step(_: Any, x: Any) -> Any:
            for _ in range(terms):
                x = x * np.float32(0.999) + np.float32(0.001)
            return x

        return jax.lax.fori_loop(0, steps, step, x)

    fused = jit_for_cpu(multiply_add, donate_argnums=0)
    added = jax.jit(lambda x: x + 1, donate_argnums=0)
    found = {
        "machine": named(jax.devices()[0]),
        "product_gflops": 2 * 3000**3 / seconds(lambda a: a @ matrix, matrix) / 1e9,
        "multiply_add_gflops": (
            2 * terms * steps * small.size / seconds(fused, small) / 1e9
        ),
        "memory_gb_per_s": 8 * large.size / seconds(added, large) / 1e9,
    }
    print(json.dumps(found))


def named(device: Any) -> str:
    """The name of the machine: that of its GPU, or of its processor."""
    if device.platform != "cpu":
        return device.device_kind
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            model = line.split(":")[1].strip()
            break
    return f"{model}, {os.cpu_count()} cores"


# In the process of the command --------------------------------------------------------


class Process:
    """A worker, and what it said."""

    def __init__(self, python: str, name: str, *arguments: str) -> None:
        env = dict(os.environ)
        if name == FLAGGED:
            env["XLA_FLAGS"] = f"{env.get('XLA_FLAGS', '')} {FLAG}".strip()
            name = PEER
        self._process = subprocess.Popen(
            [python, __file__, "--worker", name, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, env=env,
        )  # fmt: skip
        self.answers: list[dict[str, float]] = []

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
        if answer:
            self.answers.append(json.loads(answer))
        return bool(answer)

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


def compared(workload: str, peer: str | None, runs: int, limit: int) -> dict[str, Any]:
    """The times of one workload, by library; None of one that failed."""
    chosen = WORKLOADS[workload]
    asked = [(LAYERS, sys.executable, "")]
    if not chosen.layers_only:
        asked.append((FUNCTIONS, sys.executable, ""))
    if chosen.product:
        asked.append((PRODUCT, sys.executable, ""))
    if peer:
        ways = ["", *chosen.peer]
        asked += [(PEER, peer, way) for way in ways] + [(FLAGGED, peer, "")]
    running = {
        (name, way): Process(python, name, workload, way, str(limit))
        for name, python, way in asked
    }
    try:
        ended = {key: p.call() for key, p in running.items()}
        for _ in range(runs or chosen.runs):
            for key, p in running.items():
                ended[key] = ended[key] and p.call()
    finally:
        for p in running.values():
            p.stop()
    found: dict[str, Any] = {}
    for (name, way), p in running.items():
        found.setdefault(name, None)
        if not ended[name, way]:
            continue
        first, *later = p.answers
        # Nothing is faster than the product was once.
        typical = min if name == PRODUCT else statistics.median
        seconds = typical([a["seconds"] for a in later])
        if found[name] is None or seconds < found[name]["seconds"]:
            found[name] = {
                "seconds": seconds, "first": first["seconds"], "way": way,
                "peak_mb": later[0]["peak_mb"],
                "first_peak_mb": first["peak_mb"],
            }  # fmt: skip
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", metavar="PYTHON", help="of the peer's environment")
    parser.add_argument("--json", metavar="FILE", help="where the numbers go, too")
    parser.add_argument("--limit", type=int, default=600, help="seconds of a call")
    parser.add_argument("--quick", action="store_true", help="one call after the first")
    parser.add_argument("names", nargs="*", help="parts of the names of workloads")
    given = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # Several processes share a GPU.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    chosen = [
        w for w in WORKLOADS if not given.names or any(n in w for n in given.names)
    ]
    # What others do here.
    load = os.getloadavg()[0]
    command = [sys.executable, __file__, "--machine"]
    limits = json.loads(subprocess.check_output(command))
    report: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"), "load": load, **limits, "workloads": {},
    }  # fmt: skip
    print(_machine(report))
    columns = COLUMNS.replace("\n", " ").split(", ")
    print(f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for workload in chosen:
        found = compared(workload, given.peer, int(given.quick), given.limit)
        report["workloads"][workload] = found
        print(_row(workload, found), flush=True)
        if given.json:
            Path(given.json).write_text(json.dumps(report, indent=1))


def _machine(report: dict[str, Any]) -> str:
    product, peak = report["product_gflops"], report["multiply_add_gflops"]
    memory, load = report["memory_gb_per_s"], report["load"]
    return f"""{report["date"]}, {report["machine"]}: {product:.0f} GFlop/s in products,
{peak:.0f} in multiply-adds, {memory:.0f} GB/s to and from memory; load {load:.1f}.
The arithmetic of one number in a layer takes {OPERATIONS / peak:.2f} ns."""


def _row(workload: str, found: dict[str, Any]) -> str:
    def cells(name: str) -> list[str]:
        if found.get(name) is None:
            return ["failed" if name in found else ""] * 3
        one = found[name]
        return [f"{1e3 * one['seconds']:.1f}", f"{one['first']:.2f}",
                f"{one['peak_mb']:.0f}"]  # fmt: skip

    def ratio(name: str, other: str = LAYERS, form: str = ".2f") -> str:
        if found.get(name) is None or found.get(other) is None:
            return ""
        return format(found[name]["seconds"] / found[other]["seconds"], form)

    ours, *others = cells(LAYERS)
    limit = [f"{ratio(LAYERS, PRODUCT, '.1f')} x"] if ratio(LAYERS, PRODUCT) else []
    entries = WORKLOADS[workload].entries
    if entries and found[LAYERS] is not None:
        limit.append(f"{1e9 * found[LAYERS]['seconds'] / entries:.2f} ns")
    row = [workload, ours, cells(FUNCTIONS)[0], *others, ", ".join(limit)]
    row += [*cells(PEER), ratio(PEER), ratio(PEER, FUNCTIONS), ratio(FLAGGED)]
    return f"| {' | '.join(row)} |"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(*sys.argv[2:6])
    elif sys.argv[1:2] == ["--machine"]:
        machine()
    else:
        main()

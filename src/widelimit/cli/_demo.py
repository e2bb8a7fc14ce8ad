"""`widelimit demo`: from three JAX functions to the digits they read."""

import dataclasses
import time

import numpy as np

import widelimit as wl

from .._progress import progress
from ..examples import digits

NETWORKS = (
    ("mlp", digits.mlp, digits.params_mlp),
    ("cnn", digits.cnn, digits.params_cnn),
    ("rnn", digits.rnn, digits.params_rnn),
)

NOISE = 1e-4
"""Variance of the noise on the targets, over the mean variance of the prior."""

NEXT = """\
What to try next:
  widelimit formula widelimit.examples.digits:cnn    the kernel as a recursion
  widelimit check widelimit.examples.digits:rnn      the limit against wider networks
  widelimit show my_model.py:f                       a network of your own (see --help)
  widelimit kernel my_model.py:f x.npy -o k.npy      its kernel on your own data
  widelimit coverage                                 what a network may use"""


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What the demonstration found for one network.

    Attributes:
        name: of the network.
        agrees: whether the limit agrees with real networks.
        kernels: by name, seconds to compute it and the accuracy of its prediction.
    """

    name: str
    agrees: bool
    kernels: dict[str, tuple[float, float]]


def demo(
    train: int = 1000,
    test: int = 797,
    widths: tuple[int, ...] = (64, 256, 1024),
    seeds: int = 16,
) -> int:
    """Run the whole length of the compiler on real images.

    Returns:
        0 if every network agrees with its limit, 1 if one does not.
    """
    data = digits.load()
    print(f"Handwritten digits: {train:,} images to train, {test:,} to test.")
    outcomes = []
    for name, f, params in NETWORKS:
        print(f"\n{'=' * 79}\n{name}: {f.__doc__}\n")
        net = wl.limit(f, params)
        outcomes.append(_run(name, net, data, train, test, widths, seeds))
    print(f"\n{'=' * 79}")
    print("network   limit and networks   NNGP                 NTK")
    for o in outcomes:
        verdict = "agree" if o.agrees else "DISAGREE"
        found = [f"{s:6.1f} s  {a * 100:5.1f} %" for s, a in o.kernels.values()]
        print(f"{o.name:<9} {verdict:<20} {'   '.join(found)}")
    print(f"\n{NEXT}")
    return 0 if all(o.agrees for o in outcomes) else 1


def _run(
    name: str,
    net: wl.Limit,
    data: digits.Digits,
    train: int,
    test: int,
    widths: tuple[int, ...],
    seeds: int,
) -> Outcome:
    x = data.images[:4]
    print(net.program(x))
    print(f"\nReal networks at widths {', '.join(map(str, widths))}, {seeds} of each:")
    with progress("real networks") as report:
        result = net.check(x, widths=widths, seeds=seeds, progress=report)
    print(result)

    images = data.images[: train + test].astype(np.float32)
    print(f"\nKernels of {len(images):,} x {len(images):,} images:")
    kernels = {}
    for kind, what, kernel in (
        ("NNGP", "the Gaussian process", net.nngp),
        ("NTK", "gradient descent to the end", net.ntk),
    ):
        start = time.perf_counter()
        with progress(kind) as report:
            k = np.asarray(kernel(images, progress=report))
        seconds = time.perf_counter() - start
        accuracy = _accuracy(k.astype(np.float64), data, train)
        print(
            f"{kind:<5} {seconds:5.1f} s; {what}: {accuracy * 100:.1f} % "
            f"({round(accuracy * test)} of {test} test images)"
        )
        kernels[kind] = (seconds, accuracy)
    return Outcome(name, result.passed, kernels)


def _accuracy(k: np.ndarray, data: digits.Digits, train: int) -> float:
    posterior = wl.gp_posterior(
        k[:train, :train],
        k[train:, :train],
        np.diag(k)[train:],
        data.targets[:train],
        noise=NOISE * float(np.mean(np.diag(k)[:train])),
    )
    labels = data.labels[train : len(k)]
    return float(np.mean(posterior.mean.argmax(axis=1) == labels))

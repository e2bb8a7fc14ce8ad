"""The arrays of the peer that the reference networks are compared with."""

import pathlib

import numpy as np

DATA = pathlib.Path(__file__).parent / "data" / "neural_tangents.npz"


def array(key: str) -> np.ndarray:
    """One array of the file, in float64."""
    with np.load(DATA) as data:
        return data[key]

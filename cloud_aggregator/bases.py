"""The basis that a population's updates are sent in: the principal axes of its first version's embedding. Pure.

The rules:
- it is made of the exporter's public weights alone, once, and stays: sums of updates in two bases cannot be added;
- the embedding is the matrix with one row a word; its columns are the width W, turned to the eigenvectors of E^T E,
  those of the largest eigenvalues first, each with its largest entry positive;
- of every other matrix the axis of W rows is turned, or else the axis of columns if it is a multiple of W.
"""

import numpy as np

from cloud_aggregator.errors import Refused
from wire_contract.basis import Turned, encode_basis
from wire_contract.layout import Layout, Tensors


def principal_axes(tensors: Tensors, layout: Layout, *, words: int) -> bytes:
    """Return the basis file for a first version's `tensors` (float32, of the layout); `words` in its vocabulary.

    Raises `Refused` if no tensor has one row a word.
    """
    embedding = next((t for t in layout.tensors if len(t.shape) == 2 and t.shape[0] == words), None)
    if embedding is None:
        raise Refused(f"principal axes need a matrix of {words} rows, one a word, and this model has none")
    values = tensors[embedding.name].astype(np.float64)
    width = embedding.shape[1]
    vectors = np.linalg.eigh(values.T @ values)[1][:, ::-1]
    signs = np.sign(vectors[np.argmax(np.abs(vectors), axis=0), np.arange(width)])
    turned = []
    for tensor in layout.tensors:
        if tensor.name == embedding.name:
            turned.append(Turned(tensor=tensor.name, axis=1))
        elif len(tensor.shape) == 2 and tensor.shape[0] == width:
            turned.append(Turned(tensor=tensor.name, axis=0))
        elif len(tensor.shape) == 2 and tensor.shape[1] % width == 0:
            turned.append(Turned(tensor=tensor.name, axis=1))
    return encode_basis((vectors * signs).astype(np.float32), tuple(turned))

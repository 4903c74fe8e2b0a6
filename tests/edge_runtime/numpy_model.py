"""The next-word network in float64 numpy, written from its formulas alone: the independent judge of this suite.

z = kernel [x; h] + kernel_bias, rows forget | output | candidate; c = f c + (1 - f) g; h = projection (o tanh c).
"""

import numpy as np


def logits_of(tensors, stream):
    """Return [len(stream), V]: the logits after each token, from the zero state."""
    t = {name: value.astype(np.float64) for name, value in tensors.items()}
    h, c = np.zeros(t["projection"].shape[0]), np.zeros(t["projection"].shape[1])
    out = []
    for token in stream:
        z = t["kernel"] @ np.concatenate([t["embedding"][token], h]) + t["kernel_bias"]
        f, o, g = np.split(z, 3)
        f, o, g = 1 / (1 + np.exp(-f)), 1 / (1 + np.exp(-o)), np.tanh(g)
        c = f * c + (1 - f) * g
        h = t["projection"] @ (o * np.tanh(c))
        out.append(t["embedding"] @ h + t["output_bias"])
    return np.array(out)


def score_of(tensors, streams, first_scored=None):
    """Return (count, hits1, hits3, loss) by sorting and summing, word by word."""
    count = hits1 = hits3 = 0
    loss = 0.0
    for number, stream in enumerate(streams):
        logits = logits_of(tensors, stream[:-1])
        for place, target in enumerate(stream[1:], start=1):
            if target in (0, 1, 3) or (first_scored is not None and place < first_scored[number]):
                continue
            row = logits[place - 1]
            ranked = [int(i) for i in np.argsort(-row, kind="stable") if i >= 4][:3]
            count += 1
            hits1 += target == ranked[0]
            hits3 += target in ranked
            loss += float(np.log(np.sum(np.exp(row - row.max()))) + row.max() - row[target])
    return count, hits1, hits3, loss


def row_gradient(tensors, tokens, targets, weights, mask):
    """Return (loss, gradient by tensor) of ONE row: sum over t of weights[t] x cross-entropy, by back-propagation.

    tokens, targets, weights: [length]; mask: [length, width] on the state that the output layer sees.
    """
    t = {name: value.astype(np.float64) for name, value in tensors.items()}
    width, cells = t["projection"].shape
    h, c, kept, loss = np.zeros(width), np.zeros(cells), [], 0.0
    grads = {name: np.zeros_like(value) for name, value in t.items()}
    for token, target, weight, seen in zip(tokens, targets, weights, mask, strict=True):
        a = np.concatenate([t["embedding"][token], h])
        z = t["kernel"] @ a + t["kernel_bias"]
        f, o, g = np.split(z, 3)
        f, o, g = 1 / (1 + np.exp(-f)), 1 / (1 + np.exp(-o)), np.tanh(g)
        before, c = c, f * c + (1 - f) * g
        h = t["projection"] @ (o * np.tanh(c))
        logits = t["embedding"] @ (h * seen) + t["output_bias"]
        p = np.exp(logits - logits.max())
        p /= p.sum()
        loss -= weight * np.log(p[target])
        p[target] -= 1.0
        p *= weight
        grads["embedding"] += np.outer(p, h * seen)
        grads["output_bias"] += p
        kept.append((token, a, f, o, g, before, c, (t["embedding"].T @ p) * seen))
    dh, dc = np.zeros(width), np.zeros(cells)
    for token, a, f, o, g, before, c, from_output in reversed(kept):
        dh = dh + from_output
        grads["projection"] += np.outer(dh, o * np.tanh(c))
        dm = t["projection"].T @ dh
        dc = dc + dm * o * (1 - np.tanh(c) ** 2)
        dz = np.concatenate([dc * (before - g) * f * (1 - f), dm * np.tanh(c) * o * (1 - o), dc * (1 - f) * (1 - g**2)])
        grads["kernel"] += np.outer(dz, a)
        grads["kernel_bias"] += dz
        da = t["kernel"].T @ dz
        grads["embedding"][token] += da[:width]
        dh, dc = da[width:], dc * f
    return loss, grads


def norm_of(gradient):
    """Return the L2 norm over all tensors together."""
    return float(np.sqrt(sum((value**2).sum() for value in gradient.values())))

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

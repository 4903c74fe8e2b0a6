"""Layers that do nothing outside Keras's own training: they are left out, and `examine` says so."""

from collections.abc import Iterator
from typing import Any

from model_export.keras_graph.table import Call, Complaint, rule


@rule("Identity InputLayer", "nothing to compute")
def identity(call: Call) -> Any:
    return call.x


@rule(
    "Dropout SpatialDropout1D SpatialDropout2D AlphaDropout GaussianDropout GaussianNoise",
    "left out: a device trains without it",
)
def dropout(call: Call) -> Any:
    return call.x


@rule("ActivityRegularization", "left out: its penalty is not part of the exported loss")
def activity_regularization(call: Call) -> Any:
    return call.x


@rule(
    "RandomFlip RandomRotation RandomZoom RandomTranslation RandomContrast RandomBrightness",
    "left out: a device trains on examples as they are",
)
def augmentation(call: Call) -> Any:
    return call.x


def _refuse_masking(layer: Any) -> Iterator[Complaint]:
    yield (
        "makes later layers skip steps, which the exported graph does not",
        "leave it out, and let the model learn the padding value",
    )


@rule("Masking", "refused", _refuse_masking)
def masking(call: Call) -> Any:
    return call.x

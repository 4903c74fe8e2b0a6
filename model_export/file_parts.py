"""Where a `.tflite`'s bytes go: its weights, each signature's graph, the rest."""

import copy
from dataclasses import dataclass

from ai_edge_litert import schema_py_generated as schema

from model_export.slimming import slim
from wire_contract.manifest import Manifest, patched_ranges


@dataclass(frozen=True, slots=True)
class FileParts:
    """Bytes. graphs: by signature, what the file would lose without it; what graphs share is in `rest`."""

    size_bytes: int
    weights: int
    graphs: dict[str, int]

    @property
    def rest(self) -> int:
        """What belongs to no single signature: shared tables, op codes, padding. Below 0 where parts overlap."""
        return self.size_bytes - self.weights - sum(self.graphs.values())


def file_parts(data: bytes, manifest: Manifest) -> FileParts:
    """Return the parts of a version's file. Each signature is taken out in turn and the rest written again."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    whole = len(slim(data))
    graphs = {
        definition.signatureKey.decode(): whole - len(slim(_without(model, number)))
        for number, definition in enumerate(model.signatureDefs)
    }
    weights = sum(stop - start for start, stop in patched_ranges(manifest))
    return FileParts(len(data), weights, graphs)


def _without(model: schema.ModelT, number: int) -> bytes:
    """Return the file with one signature and its graph left out."""
    import flatbuffers

    less = copy.copy(model)
    gone = model.signatureDefs[number].subgraphIndex
    less.subgraphs = [graph for i, graph in enumerate(model.subgraphs) if i != gone]
    less.signatureDefs = []
    for definition in (d for i, d in enumerate(model.signatureDefs) if i != number):
        kept = copy.copy(definition)
        kept.subgraphIndex -= definition.subgraphIndex > gone
        less.signatureDefs.append(kept)
    builder = flatbuffers.Builder(1024)
    builder.Finish(less.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())

"""A refresh's files in a folder: what an offline bundle is made of (`model-export offline make --version`).

manifest.bin     the manifest that the service signed      model.tflite
template.bin     the exporter's, of the template           vocabulary.txt   (not for a model of arrays)
"""

import os
import shutil
import tempfile
from pathlib import Path

from cloud_aggregator.errors import Refused, StorageFailed
from cloud_aggregator.ports import Blobs
from wire_contract import envelope
from wire_contract.manifest import Manifest, decode_manifest


def write_release(folder: Path, blobs: Blobs, signed_manifest: bytes, signed_template: bytes) -> Manifest:
    """Write the files of a version into a folder that is new or empty; all of them are there, or none.

    Raises `Refused` where something is there already, `StorageFailed`.
    """
    manifest = decode_manifest(envelope.read_envelope(signed_manifest).body)
    files = {
        "manifest.bin": signed_manifest,
        "template.bin": signed_template,
        "model.tflite": blobs.get(manifest.sha256),
    }
    if manifest.vocabulary_sha256:
        files["vocabulary.txt"] = blobs.get(manifest.vocabulary_sha256)
    try:
        if folder.exists() and any(folder.iterdir()):
            raise Refused(f"{folder} holds something already", "name a folder that is new or empty")
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            for name, data in files.items():
                with (fresh / name).open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            fresh.chmod(0o755)
            fresh.rename(folder)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
    except OSError as e:
        raise StorageFailed(f"{folder}: cannot be written: {e}") from e
    return manifest

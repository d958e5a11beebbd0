"""Versioned weights from the client's side: publish a version, fetch one, trust nothing that was not checked."""

from trimtab.weights.manifest import TensorData, check_channel, check_manifest, tensor_digest, weights_digest
from trimtab.weights.publication import FetchedVersion, fetch_version, publish_version
from trimtab.weights.transfer import BlobCache, BlobClient

__all__ = [
    "BlobCache",
    "BlobClient",
    "FetchedVersion",
    "TensorData",
    "check_channel",
    "check_manifest",
    "fetch_version",
    "publish_version",
    "tensor_digest",
    "weights_digest",
]

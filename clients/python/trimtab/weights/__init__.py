"""Versioned weights from the client's side: publish a version, fetch one, trust nothing that was not checked."""

from trimtab.weights.delta import decode_delta, encode_delta
from trimtab.weights.fetching import FetchedVersion, fetch_version
from trimtab.weights.manifest import TensorData, check_channel, check_manifest, tensor_digest, weights_digest
from trimtab.weights.publication import MAX_CHAIN, Publication, Publisher, publish_version
from trimtab.weights.transfer import BlobCache, BlobClient

__all__ = [
    "MAX_CHAIN",
    "BlobCache",
    "BlobClient",
    "FetchedVersion",
    "Publication",
    "Publisher",
    "TensorData",
    "check_channel",
    "check_manifest",
    "decode_delta",
    "encode_delta",
    "fetch_version",
    "publish_version",
    "tensor_digest",
    "weights_digest",
]

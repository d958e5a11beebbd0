"""Inside the S3 server's pod: copies a folder into a bucket. Arguments: folder, bucket, prefix, key, secret."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import boto3

SERVER = {"endpoint_url": "http://127.0.0.1:9000", "region_name": "us-east-1"}


def main(folder: str, bucket: str, prefix: str, key: str, secret: str) -> None:
    client = boto3.client("s3", **SERVER, aws_access_key_id=key, aws_secret_access_key=secret)
    names = [path.name for path in Path(folder).iterdir()]
    for name in names:
        client.upload_file(f"{folder}/{name}", bucket, f"{prefix}/{name}")
    print(json.dumps(names))


main(*sys.argv[1:])

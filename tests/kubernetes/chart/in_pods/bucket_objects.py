"""Inside the S3 server's pod: prints the bytes of each object of a bucket by its name, as JSON. Arguments: bucket,
access key, secret."""

from __future__ import annotations

import json
import sys

import boto3


def main(bucket: str, key: str, secret: str) -> None:
    s3 = boto3.client(
        "s3",
        endpoint_url="http://127.0.0.1:9000",
        region_name="us-east-1",
        aws_access_key_id=key,
        aws_secret_access_key=secret,
    )
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    print(json.dumps({one["Key"]: one["Size"] for page in pages for one in page.get("Contents", [])}))


main(*sys.argv[1:])

"""Inside the S3 server's pod: makes a bucket, and a user who may do in it what docs/operate.md says that the weights
service does. Argument: bucket. Prints the user's access key and secret, as JSON."""

from __future__ import annotations

import json
import sys

import boto3

SERVER = {"endpoint_url": "http://127.0.0.1:9000", "region_name": "us-east-1"}
NOBODY = {"aws_access_key_id": "none", "aws_secret_access_key": "none"}

IN_A_BUCKET = ["s3:ListBucket", "s3:ListBucketMultipartUploads", "s3:HeadBucket"]
"""The last one is the server's own name of what S3 allows by the first."""
ON_OBJECTS = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]


def main(bucket: str) -> None:
    boto3.client("s3", **SERVER, **NOBODY).create_bucket(Bucket=bucket)
    statements = [
        {"Effect": "Allow", "Action": IN_A_BUCKET, "Resource": "arn:aws:s3:::*"},
        {"Effect": "Allow", "Action": ON_OBJECTS, "Resource": f"arn:aws:s3:::{bucket}/*"},
    ]
    policy = {"Version": "2012-10-17", "Statement": statements}
    iam = boto3.client("iam", **SERVER, **NOBODY)
    iam.create_user(UserName="weights")
    iam.put_user_policy(UserName="weights", PolicyName="store", PolicyDocument=json.dumps(policy))
    made = iam.create_access_key(UserName="weights")["AccessKey"]
    print(json.dumps([made["AccessKeyId"], made["SecretAccessKey"]]))


main(*sys.argv[1:])

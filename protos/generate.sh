#!/usr/bin/env bash
# Writes the Python stubs of protos/trimtab/v1 under DIR (default: the SDK). The tools live in a venv of their own,
# because the pinned grpcio-tools, whose output runs on protobuf 6 and 7, needs protobuf 6 itself.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-clients/python}
venv=.venv-protos
if ! cmp --silent protos/requirements.txt "$venv/requirements.txt"; then  # none yet, other pins, or half an install
  rm -rf "$venv"
  "${PYTHON:-python3}" -m venv "$venv"
  "$venv/bin/pip" install --quiet --requirement protos/requirements.txt
  cp protos/requirements.txt "$venv/requirements.txt"
fi
mkdir -p "$out"
rm -f "$out"/trimtab/v1/*_pb2*.py*
"$venv/bin/python" -m grpc_tools.protoc --proto_path=protos \
  --plugin=protoc-gen-mypy="$venv/bin/protoc-gen-mypy" --plugin=protoc-gen-mypy_grpc="$venv/bin/protoc-gen-mypy_grpc" \
  --python_out="$out" --grpc_python_out="$out" --mypy_out=quiet:"$out" --mypy_grpc_out=quiet:"$out" \
  protos/trimtab/v1/*.proto
rm -f "$out"/trimtab/v1/{errors,types}_pb2_grpc.py*   # no service in them

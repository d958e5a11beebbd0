#!/usr/bin/env bash
# Writes the Python stubs: those of protos/trimtab/v1 into the SDK, those of protos/inference into the reward service,
# which is the only one that speaks that protocol, and KEDA's into the trainer service. With DIR all go below DIR. The tools live in a venv of their own,
# because the pinned grpcio-tools, whose output runs on protobuf 6 and 7, needs protobuf 6 itself.
set -euo pipefail
cd "$(dirname "$0")/.."
sdk=${1:-clients/python}
services=${1:-services}
inference=trimtab_services/reward/fronts/inference
scaler=trimtab_services/trainer/externalscaler
venv=.venv-protos
if ! cmp --silent protos/requirements.txt "$venv/requirements.txt"; then  # none yet, other pins, or half an install
  rm -rf "$venv"
  "${PYTHON:-python3}" -m venv "$venv"
  "$venv/bin/pip" install --quiet --requirement protos/requirements.txt
  cp protos/requirements.txt "$venv/requirements.txt"
fi

stubs() {  # OUT, where the protos are, the protos
  local out=$1 path=$2
  shift 2
  mkdir -p "$out"
  "$venv/bin/python" -m grpc_tools.protoc --proto_path="$path" \
    --plugin=protoc-gen-mypy="$venv/bin/protoc-gen-mypy" --plugin=protoc-gen-mypy_grpc="$venv/bin/protoc-gen-mypy_grpc" \
    --python_out="$out" --grpc_python_out="$out" --mypy_out=quiet:"$out" --mypy_grpc_out=quiet:"$out" "$@"
}

rm -f "$sdk"/trimtab/v1/*_pb2*.py* "$services"/{"$inference","$scaler"}/*_pb2*.py*
stubs "$sdk" protos protos/trimtab/v1/*.proto
rm -f "$sdk"/trimtab/v1/{errors,types}_pb2_grpc.py*   # no service in them
stubs "$services" "$inference=protos/inference" "$inference/open_inference.proto"  # where they are imported from
stubs "$services" "$scaler=protos/externalscaler" "$scaler/externalscaler.proto"

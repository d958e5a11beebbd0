#!/usr/bin/env bash
# Fails when src/generated is not what the protos give; `npm run generate` makes it anew.
set -euo pipefail
cd "$(dirname "$0")/.."
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
npx --no-install buf generate --output "$fresh"
diff --recursive --brief "$fresh/src/generated" src/generated || {
  echo "src/generated is stale: run 'npm run generate'" >&2
  exit 1
}

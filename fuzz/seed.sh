#!/usr/bin/env bash
# Fills corpus/ with this repository's fixtures.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p fuzz/corpus/{safetensors,pickle,state_dict,gguf,config}
copy() {  # target, files: each under a name of its own
    local target=$1 file
    shift
    for file in "$@"; do
        cp "$file" "fuzz/corpus/$target/$(echo "$file" | tr '/' '_')"
    done
}
# Headers alone, with less data than they promise, are as good as whole files.
for file in fixtures/models/*/model.safetensors fixtures/formats/*/*.safetensors; do
    head -c 4096 "$file" > "fuzz/corpus/safetensors/$(echo "$file" | tr '/' '_')"
done
copy pickle fixtures/formats/pickle/*.bin fixtures/formats/pickle/model/*.bin
copy gguf fixtures/formats/gguf/blocks.gguf
for file in fixtures/formats/gguf/*.gguf; do
    head -c 16384 "$file" > "fuzz/corpus/gguf/$(echo "$file" | tr '/' '_').head"
done
copy config fixtures/models/*/config.json
for file in fixtures/formats/pickle/*.bin; do
    unzip -p "$file" '*/data.pkl' > "fuzz/corpus/state_dict/$(basename "$file").pkl" 2> /dev/null || true
done

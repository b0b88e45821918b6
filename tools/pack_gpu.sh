#!/bin/sh
# Fills gpu-day/ with what bench/gpu.py needs on a machine that has torch, torchvision, pandas and matplotlib, and no
# network: wheels of the locked versions, for Python 3.11 to 3.13 on x86-64 Linux, and Fashion-MNIST. Under 64 MiB.
set -eu
cd "$(dirname "$0")/.."
folder=gpu-day
limit=64 # MiB
needed="pydantic pydantic-core annotated-types typing-inspection typing-extensions timm pyyaml tqdm safetensors"

say() { echo "pack_gpu: $*" >&2; }
fail() { say "$*"; exit 1; }

for python in "${PYTHON:-}" .venv/bin/python python3; do
    [ -n "$python" ] && "$python" -m pip --version >/dev/null 2>&1 && break
    python=
done
[ -n "$python" ] || fail "no Python with pip here: name one (PYTHON=/path/to/python sh tools/pack_gpu.sh)"

pins=
for name in $needed; do
    pin=$(sed -n "s/^\($name==[^ ;]*\).*/\1/p" requirements.txt)
    [ -n "$pin" ] || fail "requirements.txt has no $name: run make lock"
    pins="$pins $pin"
done

rm -rf "$folder/wheels" "$folder/site"
mkdir -p "$folder/wheels" "$folder/FashionMNIST/raw"
for version in 3.11 3.12 3.13; do
    # shellcheck disable=SC2086 # one word for each pin
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
        --platform manylinux2014_x86_64 --platform manylinux_2_28_x86_64 --python-version "$version" \
        --dest "$folder/wheels" $pins || fail "pip could not download the wheels for Python $version"
done

[ "$(ls data/FashionMNIST/raw/*.gz 2>/dev/null | wc -l)" -eq 4 ] || make data
cp data/FashionMNIST/raw/*.gz "$folder/FashionMNIST/raw/"

git describe --always --abbrev=40 --dirty > "$folder/commit" # of what the runs there are runs of

size=$(du -sm "$folder" | cut -f1)
[ "$size" -le $limit ] || fail "$folder has $size MiB, more than the $limit that may travel: pack fewer Python versions"
say "$folder is ready: $size MiB, $(find "$folder/wheels" -name '*.whl' | wc -l) wheels"

#!/bin/bash
# Make the folder that travels to a GPU machine without a network: a lean copy of the repository with wheels.
#   benchmarks/gpu/pack.sh [FOLDER]      FOLDER: build/gpu unless given; it is replaced
# Environment: ARMS, the embedded checkpoints to take along (default "english"); PYTHON, a Python 3.11 or later with pip.
# Fails when the folder has more than 64 MiB.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
target=${1:-$root/build/gpu}
arms=${ARMS:-english}
python=${PYTHON:-python3}
most=$((64 * 1024 * 1024))
missing="bitsandbytes datasets dill multiprocess pydantic pydantic_core annotated-types typing-inspection typer"

mkdir -p "$(dirname "$target")"
wheels=$(dirname "$target")/wheels-cp312
mkdir -p "$wheels"
for name in $missing; do
  pin=$(grep -iE "^${name//[-_]/[-_]}==" "$root/constraints.txt" || true)
  [ -n "$pin" ] || { echo "error: constraints.txt has no version of $name" >&2; exit 1; }
  file=$(tr '[:upper:]-' '[:lower:]_' <<< "$name")-${pin##*==}-
  if ! ls "$wheels/$file"*.whl > /dev/null 2>&1; then
    platforms=()
    for number in 2_17 2_24 2_28 2_27 2_31 2_34; do platforms+=(--platform "manylinux_${number}_x86_64"); done
    "$python" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
      --platform manylinux2014_x86_64 "${platforms[@]}" -d "$wheels" "$pin"
  fi
done

rm -rf "$target"
mkdir -p "$target/wheels"
cp "$wheels"/*.whl "$target/wheels/"
(cd "$root" && git ls-files -z pyproject.toml LICENSE README.md petransfer tests recipes benchmarks \
  ':!petransfer/models/nano' | tar --null -T - -cf -) | tar -C "$target" -xf -
nano=petransfer/models/nano
for arm in tokenizer $arms; do
  [ -d "$root/$nano/$arm" ] || { echo "error: there is no embedded checkpoint nano/$arm" >&2; exit 1; }
  mkdir -p "$target/$nano/$arm"
  cp -R "$root/$nano/$arm/." "$target/$nano/$arm/"
done

size=$(find "$target" -type f -printf '%s\n' | awk '{ total += $1 } END { print total + 0 }')
if [ "$size" -gt "$most" ]; then
  echo "error: $target has $size bytes and at most $most travel; use fewer ARMS" >&2
  exit 1
fi
echo "$target has $size bytes (at most $most)"

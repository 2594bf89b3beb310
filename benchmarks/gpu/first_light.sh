#!/bin/bash
# Run the GPU stages on a machine without a network, from the folder that pack.sh made.
#   benchmarks/gpu/first_light.sh [--stages a,c] [--out FOLDER] [--rehearse]      all options: --help
# Results go to --out, else to $OUT, else to first-light/.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$root"
python=${PYTHON:-python3}
if [ -d wheels ]; then
  site=$(mktemp -d)
  "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" wheels/*.whl
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
exec "$python" -m benchmarks.gpu "$@"

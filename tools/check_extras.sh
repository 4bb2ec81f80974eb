#!/usr/bin/env bash
# Each extra of pyproject.toml alone, as `pip install 'cliploc[EXTRA]'` gives it: the wheel of dist/ (check_wheel.sh builds
# it) with one extra in a new virtual environment, `pip check`, and the feature on a bundled photograph.
#
#   tools/check_extras.sh PYTHON [EXTRA…]    PYTHON has uv installed; all extras by default
#
# The environment without extras is made once, and each extra gets a copy of it by hard links. It has torch from PyPI, with
# CUDA, some gigabytes; UV_FIND_LINKS can name a folder with torch for the CPU.
set -euo pipefail
cd "$(dirname "$0")/.."
python="$(realpath --no-symlinks "${1:-python}")"
shift || true
(($#)) || set -- autodistill fiftyone heic refine regions sam bench quantus ray segmentation web
wheel="$(realpath dist/cliploc-*.whl)"
check="$(realpath tools/check_extra.py)"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

cd "$work"
unset PYTHONPATH
export HF_HUB_OFFLINE=1 CLIPLOC_CACHE="$work/cache"
uv() { "$python" -m uv "$@"; }
uv venv --quiet --python "$python" base
uv pip install --quiet --python base/bin/python "$wheel"
uv pip check --quiet --python base/bin/python
base/bin/python -m cliploc demo --out out >log 2>&1 || { cat log; exit 1; }
failed=""
for extra in "$@"; do
  rm -rf venv out
  cp -al base venv
  if uv pip install --quiet --python venv/bin/python "cliploc[$extra] @ file://$wheel" &&
    uv pip check --quiet --python venv/bin/python && venv/bin/python "$check" "$extra" >log 2>&1; then
    echo "$extra: works alone"
  else
    cat log
    failed+=" $extra"
  fi
done
[ -z "$failed" ] || { echo "do not work alone:$failed"; exit 1; }

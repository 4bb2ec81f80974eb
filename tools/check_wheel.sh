#!/usr/bin/env bash
# Builds the source distribution, and the wheel from it; checks both; installs the wheel into a new virtual environment and
# runs the main job there, away from the checkout.
#
# The new environment has what the wheel asks for and nothing else. torch and torchvision are linked from the environment
# that PYTHON belongs to, so that they are not downloaded again; with FULL=1 they are installed as well. With QUICK=1 the
# new environment sees all packages of the old one, nothing is downloaded, and one photo stands for the whole demo.
set -euo pipefail
cd "$(dirname "$0")/.."
python="$(realpath --no-symlinks "${1:-python}")"
limit_mb=40
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

rm -rf dist
"$python" -m build --outdir dist . >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
"$python" -m twine check --strict dist/*
wheel="$(realpath dist/*.whl)"
bytes="$(wc -c <"$wheel")"
echo "wheel: $((bytes / 1000000)) MB; sdist: $(($(wc -c <dist/*.tar.gz) / 1000000)) MB"
((bytes <= limit_mb * 1000000)) || { echo "the wheel is larger than $limit_mb MB"; exit 1; }

"$python" -m venv "$work/venv"
new="$work/venv/bin"
if [ -n "${QUICK:-}" ]; then
  "$python" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1])' \
    >"$("$new/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/packages.pth"
elif [ -z "${FULL:-}" ]; then
  from="$("$python" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1])')"
  to="$("$new/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
  ln -s "$from"/torch "$from"/torchgen "$from"/functorch "$from"/torch-*.dist-info "$from"/torchvision* "$to"
fi
"$new/pip" install --quiet --disable-pip-version-check ${QUICK:+--no-deps --force-reinstall} "$wheel"

cd "$work"
unset PYTHONPATH
export HF_HUB_OFFLINE=1 CLIPLOC_CACHE="$work/cache"
"$new/python" -c '
import sys, cliploc
assert cliploc.__file__.startswith(sys.prefix), f"{cliploc.__file__} is not the installed one"
print("installed:", cliploc.__version__)'
if [ -z "${QUICK:-}" ]; then
  "$new/cliploc" demo --out demo-out >demo.txt
  grep -E "^mean IoU" demo.txt
  test -s demo-out/cat.jpg
fi
photo="$("$new/python" -c 'import cliploc, pathlib; print(pathlib.Path(cliploc.__file__).parent / "demo_photos/cat.jpg")')"
"$new/cliploc" localize "$photo" -p cat --model mini-vit --out found >/dev/null
test -s found/results.json
echo "the wheel works away from the checkout"

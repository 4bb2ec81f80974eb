#!/usr/bin/env bash
# The browser tests. Where there is no browser and none can be had, one line says why, and it is no failure.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${1:-python}"

browser() { command -v chromium || command -v chromium-browser || command -v google-chrome; }
skip() {
  echo "browser tests skipped: $1"
  exit 0
}

"$python" -c "import playwright" 2>/dev/null ||
  "$python" -m pip install --quiet --disable-pip-version-check playwright ||
  skip "playwright cannot be installed: pip install playwright"
if ! browser >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "installing chromium"
  (apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium) >/dev/null 2>&1 || true
fi
browser >/dev/null || skip "no chromium on this machine: have it installed (Debian: apt-get install chromium)"
CLIPLOC_TEST_WEB=1 exec "$python" -m pytest -n 2 --dist loadfile tests/web/test_browser.py tests/web/test_review.py \
  tests/web/test_unknown_thing.py

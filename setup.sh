#!/usr/bin/env bash
# Makes .venv from requirements.lock, finds or installs Java 17, fetches Delta's jars. Run by make; safe to run again.
# With --browser: also Chromium for the tests of the search page, where it can be installed.
set -euo pipefail
cd "$(dirname "$0")"

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }
can_apt() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }
apt_install() { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null; }

python_fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; }
java_fits() { "$1" -version 2>&1 | grep -qE 'version "(1[7-9]|2[0-9])'; }

make_venv() {
  local python=""
  for candidate in "${PYTHON:-}" python3.11 python3.12 python3; do
    if [ -n "$candidate" ] && python_fits "$candidate"; then python=$candidate; break; fi
  done
  [ -n "$python" ] || die "Python 3.11 or 3.12 is needed and was not found; name it with PYTHON=/path/to/python3.11"
  [ -x .venv/bin/python ] || "$python" -m venv .venv || die "could not make .venv; on Debian: apt-get install python3-venv"
  .venv/bin/python -m pip install -q uv || die "could not install uv; is the package registry reachable?"
  say "installing $(grep -c '^[a-z].*==' requirements.lock) pinned packages (about a minute)"
  # Where Python may not keep what it compiled, each process would compile the libraries again, torch alone for seven seconds.
  local compiled=${PYTHONDONTWRITEBYTECODE:+--compile-bytecode}
  .venv/bin/uv pip install -q --python .venv/bin/python $compiled --require-hashes -r requirements.lock
  .venv/bin/uv pip install -q --python .venv/bin/python --no-deps --no-build-isolation -e .
}

find_java() {
  if [ -n "${JAVA_HOME:-}" ] && java_fits "$JAVA_HOME/bin/java"; then return; fi
  if command -v java >/dev/null && java_fits java; then return; fi
  if can_apt; then
    say "no Java 17 found; installing openjdk-17-jre-headless"
    apt_install openjdk-17-jre-headless && return
  fi
  die "Java 17 or newer is needed by Spark: install openjdk-17-jre-headless (Debian, Ubuntu) or set JAVA_HOME, then run this again"
}

find_browser() {
  for name in chromium chromium-browser google-chrome; do command -v "$name" >/dev/null && return; done
  if can_apt; then
    say "installing chromium for the tests of the search page"
    apt_install chromium && return
  fi
  say "no Chromium: the tests of the search page will be skipped (Debian, Ubuntu: apt-get install chromium)"
}

if [ "${1:-}" = --browser ]; then find_browser; exit; fi

state=$(cat requirements.lock pyproject.toml setup.sh | sha256sum | cut -d' ' -f1)
if [ "$(cat .venv/.ready 2>/dev/null)" != "$state" ]; then
  make_venv
  find_java
  say "fetching Delta's jars for Spark"
  .venv/bin/python - "${CONF:-conf/local.yaml}" <<'PY'
import sys
from pathlib import Path

from jobs.config import Config, ConfigError, JobError
from jobs.spark.session import spark_session

try:
    spark_session(Config.load(Path(sys.argv[1])).spark, "setup").stop()
except (ConfigError, JobError) as error:
    sys.exit(f"setup: {error}")
PY
  echo "$state" > .venv/.ready
fi
find_java

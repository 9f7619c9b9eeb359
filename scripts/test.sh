#!/usr/bin/env bash
# Installs what the tests need (quick when it is there), then lints, checks types and runs the tests.
#
#   scripts/test.sh                            everything that needs no GPU
#   scripts/test.sh tests/unit -k boundary     arguments go to pytest
#   DEVICE=cuda scripts/test.sh -m gpu         on a machine with an NVIDIA GPU
#
# The Python is $PYTHON, or python3; it must be 3.11 or 3.12.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export PYTHON=${PYTHON:-python3}
device=${DEVICE:-cpu}
env=$PWD/.cache/env-py$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-$device
scripts/install.sh --env "$env" --device "$device"
"$env/bin/python" -m pip install -qq --disable-pip-version-check --no-deps -r requirements-dev.lock

# The tests of the web page drive a browser; without one they fail and name the package.
if ! command -v chromium >/dev/null && ! command -v google-chrome >/dev/null && [[ $EUID -eq 0 ]] && command -v apt-get >/dev/null; then
    { apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium; } >&2 || true
fi

"$env/bin/ruff" check
"$env/bin/ruff" format --check
"$env/bin/mypy"
# In two processes, a file in one of them (-n 0: in this one); files that start servers come before the many small ones.
[[ $device == cuda ]] || set -- -n 2 --dist loadfile --no-loadscope-reorder "$@"
exec "$env/bin/python" -m pytest "$@"

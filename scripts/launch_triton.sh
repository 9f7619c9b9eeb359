#!/usr/bin/env bash
# Starts a Triton server that streams Dia2, on a bare machine with Python 3.11 or 3.12. Try --help.
set -euo pipefail

# transformers 5 needs 3.11, numpy 1.26 ends at 3.12
supported='import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))'
for python in ${PYTHON:-python3 python3.12 python3.11}; do
    if "$python" -c "$supported" 2>/dev/null; then
        exec "$python" "$(dirname "${BASH_SOURCE[0]}")/launch.py" "$@"
    fi
done
echo "launch_triton: no Python 3.11 or 3.12 found (looked for ${PYTHON:-python3, python3.12, python3.11});" \
    "install one, or name it: PYTHON=/path/to/python $0" >&2
exit 1

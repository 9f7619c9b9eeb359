#!/usr/bin/env bash
# Installs what the server runs on, pinned. Shared by scripts/launch_triton.sh and the Dockerfile.
#
#   install.sh --env DIR --device cpu|cuda [--reuse]
#       Makes DIR: a virtual environment with an embedded Triton under DIR/triton. Quick when DIR is up to date.
#       --reuse takes what the Python at hand already has (torch, transformers) and installs only what is missing.
#   install.sh --container --device cpu|cuda
#       Installs into the Python of a Triton container image, which brings the server and its numpy.
#
# The Python is $PYTHON, or python3. Set PIP_NO_INDEX and PIP_FIND_LINKS to install from a folder of wheels.
set -euo pipefail

readonly TORCH=2.13.0
readonly PYTRITON=0.7.0 # carries tritonserver 2.51 (24.10), its Python backend, and a stub per Python version
readonly NUMPY=1.26.4   # what that stub was built for; numpy 2 makes it send empty tensors
readonly CPU_INDEX=https://download.pytorch.org/whl/cpu
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
locks=("$root/requirements.lock" "$root/gateway/requirements.lock")
python=${PYTHON:-python3}
env='' device='' reuse=no container=no

say() { printf 'install: %s\n' "$*" >&2; }
die() {
    say "$*"
    exit 1
}

while [[ $# -gt 0 ]]; do
    case $1 in
    --env) env=${2-} && shift $(($# > 1 ? 2 : 1)) ;;
    --device) device=${2-} && shift $(($# > 1 ? 2 : 1)) ;;
    --reuse) reuse=yes && shift ;;
    --container) container=yes && shift ;;
    -h | --help) sed -n '2,/^set /s/^# \?//p' "${BASH_SOURCE[0]}" && exit ;;
    *) die "unknown argument $1; try --help" ;;
    esac
done

# Says what this machine lacks, before anything is downloaded.
check_machine() {
    local glibc
    [[ $(uname -sm) == 'Linux x86_64' ]] || die "the embedded Triton is for Linux x86-64; use --docker here"
    glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null | cut -d' ' -f2) || true
    [[ -n $glibc && $(printf '%s\n' 2.35 "$glibc" | sort -V | head -n1) == 2.35 ]] ||
        die "the embedded Triton needs glibc 2.35 (Debian 12, Ubuntu 22.04) or later; this is ${glibc:-not glibc}. Use --docker."
    "$python" - <<'PY' || exit 1
import os, sys, sysconfig
name = f"python3.{sys.version_info.minor}"
try:
    import ensurepip, venv
except ImportError:
    sys.exit(f"install: {sys.executable} has no venv module; on Debian or Ubuntu: apt install {name}-venv")
library = f"lib{name}.so.1.0"
if not os.path.exists(os.path.join(sysconfig.get_config_var("LIBDIR"), library)):
    sys.exit(f"install: {sys.executable} has no {library}; on Debian or Ubuntu: apt install lib{name}")
PY
}

# On a GPU the engine's kernels are compiled at the first start, which takes a C compiler and Python's headers.
check_compiler() {
    local headers
    headers=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    command -v "${CC:-gcc}" >/dev/null || command -v clang >/dev/null ||
        die "no C compiler found (gcc or clang); on Debian or Ubuntu: apt install gcc libc6-dev"
    [[ -e $headers/Python.h ]] ||
        die "$headers/Python.h is missing; on Debian or Ubuntu: apt install python3-dev (of this Python's version)"
}

# What the environment was made from: if any of it changes, it is made anew.
stamp() {
    {
        "$python" -c 'import sys; print(sys.version, sys.base_prefix)'
        echo "$root $env $device $reuse"
        cat "${BASH_SOURCE[0]}" "${locks[@]}"
        [[ $reuse == no ]] || loose_requirements
    } | sha256sum
}

# The published dependencies, unpinned, from pyproject.toml; without those that are in this checkout.
loose_requirements() {
    "$python" - "$root/pyproject.toml" "$root/client/pyproject.toml" "$root/gateway/pyproject.toml" <<'PY'
import sys, tomllib
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        print(*(line for line in tomllib.load(file)["project"]["dependencies"] if line != "dia2-client"), sep="\n")
PY
}

pip() { "$env_python" -m pip "$@"; }

install_packages() {
    if [[ $reuse == yes ]]; then
        say "installing what $python lacks"
        # Unlike --system-site-packages, this also works when that Python is itself of a virtual environment.
        "$python" -c 'import site; [print(f"import site; site.addsitedir({d!r})") for d in site.getsitepackages()]' \
            >"$("$env_python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/reused.pth"
        loose_requirements >"$env/requirements.txt"
        pip install -qq -r "$env/requirements.txt" "numpy==$NUMPY"
        return
    fi
    say "installing the locked packages"
    # The lock is complete, so nothing may be resolved behind its back.
    pip install -qq --no-deps "${locks[@]/#/--requirement=}"
    install_torch -c "$root/requirements.lock"
}

install_torch() {
    say "installing torch $TORCH for $device"
    if [[ $device == cuda ]]; then
        pip install -qq "$@" "torch==$TORCH"
    else
        # Plain "torch" from PyPI is the CUDA build, gigabytes that a CPU cannot use.
        pip install -qq --no-deps "torch==$TORCH+cpu" 2>/dev/null ||
            pip install -qq --no-deps --index-url "$CPU_INDEX" "torch==$TORCH" ||
            die "no torch $TORCH for the CPU from $CPU_INDEX. Where that cannot be reached, put its wheel (torch-$TORCH+cpu-...whl)" \
                "into a folder and set PIP_FIND_LINKS to it, or use --reuse with a Python that has torch."
    fi
}

# The image is ours, so its Python need not be protected; its numpy fits its server and stays.
install_into_container() {
    local lock
    export PIP_BREAK_SYSTEM_PACKAGES=1 PIP_NO_CACHE_DIR=1
    lock=$(mktemp)
    grep -hv '^numpy==' "${locks[@]}" >"$lock"
    # Not uninstalling what is there first: the distribution's own packages cannot be.
    pip install -qq --no-deps --ignore-installed -r "$lock"
    install_torch -c "$lock"
    rm "$lock"
    link_checkout
}

install_triton() {
    local triton=$env/triton/pytriton/tritonserver version
    say "fetching the embedded Triton (55 MB)"
    # In a folder of its own and without its dependencies: as a package it would pin numpy and much else.
    pip install -qq --no-deps --target "$env/triton" "nvidia-pytriton==$PYTRITON"
    version=$("$python" -c 'import sys; print(f"3.{sys.version_info.minor}")')
    cp "$triton/python_backend_stubs/$version/triton_python_backend_stub" "$triton/backends/python/"
    chmod +x "$triton/bin/tritonserver" "$triton/backends/python/triton_python_backend_stub"
}

# What `pip install -e` would do, less its build step. Triton's Python ignores PYTHONPATH but reads .pth files.
link_checkout() {
    local site bin command module
    site=$("$env_python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    bin=$("$env_python" -c 'import sysconfig; print(sysconfig.get_path("scripts"))')
    printf '%s\n' "$root" "$root/client" "$root/gateway" >"$site/stream-dia2.pth"
    while read -r command module; do
        printf '#!%s\nimport sys\n\nfrom %s import main\n\nsys.exit(main())\n' "$env_python" "$module" >"$bin/$command"
        chmod +x "$bin/$command"
    done <<<$'dia2-say dia2_client.cli\ndia2-voice dia2_engine.voice.cli\ndia2-gateway dia2_gateway.cli'
}

[[ $device =~ ^(cpu|cuda)$ ]] || die "--device cpu|cuda is required"
if [[ $container == yes ]]; then
    env_python=$(command -v "$python")
    install_into_container
    exit
fi

[[ -n $env ]] || die "--env DIR is required"
mkdir -p "$(dirname "$env")"
env=$(cd "$(dirname "$env")" && pwd)/$(basename "$env")
env_python=$env/bin/python
exec 9>"$env.lock"
flock 9 # two launches at once: the second waits and finds it done
if [[ $(cat "$env/stamp" 2>/dev/null) != "$(stamp)" ]]; then
    check_machine
    [[ $device == cpu ]] || check_compiler
    [[ ! -e $env || -e $env/pyvenv.cfg ]] || die "$env exists and is no virtual environment"
    # Recognizable as ours at every moment, or a start after an interrupted one would refuse to touch it.
    rm -rf "$env.old"
    [[ ! -e $env ]] || mv "$env" "$env.old"
    rm -rf "$env.old"
    mkdir "$env"
    touch "$env/pyvenv.cfg"
    "$python" -m venv "$env"
    install_packages
    install_triton
    link_checkout
    stamp >"$env/stamp"
fi

# shellcheck shell=bash disable=SC2034
# Sourced by quickstart.sh and test.sh, in the repository's root: system packages, LibTorch, the build. Every step does nothing
# when it is already done. SLIM_TORCH=DIR uses a LibTorch of your own; CMAKE_BUILD_PARALLEL_LEVEL sets the number of jobs.
export DEBIAN_FRONTEND=noninteractive PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
slim_root=$PWD

say() { printf '\n== %s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

slim_packages=(g++ cmake ninja-build ccache pkg-config python3 libboost-dev libboost-iostreams-dev libboost-program-options-dev libtomlplusplus-dev libyaml-cpp-dev
  nlohmann-json3-dev libutf8proc-dev libpcre2-dev libjpeg-dev libpng-dev libwebp-dev)

# A tool counts as installed if it runs, a library if its package is there.
has_package() {
  case $1 in
    g++ | cmake | ccache | pkg-config | python3) command -v "$1" >/dev/null ;;
    ninja-build) command -v ninja >/dev/null ;;
    python3-venv) python3 -c 'import venv, ensurepip' 2>/dev/null ;;
    *) dpkg-query -W -f='${Status}' "$1" 2>/dev/null | grep -q 'ok installed' ;;
  esac
}

# install_packages PACKAGE...: those that are missing, with apt.
install_packages() {
  local package missing=() as_root=()
  command -v dpkg-query >/dev/null || {
    echo "This is not Debian or Ubuntu: not checking for $*" >&2
    return 0
  }
  for package in "$@"; do
    has_package "$package" || missing+=("$package")
  done
  ((${#missing[@]})) || return 0
  if [[ $(id -u) != 0 ]]; then
    if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
      as_root=(sudo -n DEBIAN_FRONTEND=noninteractive)
    else
      die "system packages are missing; run this and start again:
  sudo apt-get update && sudo apt-get install -y --no-install-recommends ${missing[*]}"
    fi
  fi
  say "Installing system packages: ${missing[*]}"
  ${as_root[@]+"${as_root[@]}"} apt-get update -qq
  ${as_root[@]+"${as_root[@]}"} apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# pip_install FILE [FLAG...]: into .venv, once for each content of the file.
pip_install() {
  local file=$1 stamp
  shift
  if [[ ! -x .venv/bin/python ]] || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    install_packages python3-venv
    say "Creating .venv"
    python3 -m venv .venv
  fi
  stamp=.venv/slim-$(sha256sum "$file" | cut -c1-16).stamp
  [[ -e $stamp ]] && return 0
  say "Installing $file into .venv"
  .venv/bin/python -m pip install --quiet --no-warn-conflicts "$@" -r "$file" || return
  touch "$stamp"
}

# Sets SLIM_TORCH.
install_libtorch() {
  if [[ -z ${SLIM_TORCH:-} ]]; then
    pip_install sdk/libtorch.txt --no-deps
    SLIM_TORCH=$(echo "$slim_root"/.venv/lib/python3*/site-packages/torch)
  fi
  [[ -e $SLIM_TORCH/lib/libtorch_cpu.so ]] || die "no LibTorch at '$SLIM_TORCH': lib/libtorch_cpu.so is missing.
  Remove .venv and start again, or set SLIM_TORCH to a folder that holds include/ and lib/"
  export SLIM_TORCH
}

# For parquet files. SLIM_ARROW=DIR uses an Arrow of your own; slim is built without it where it cannot be installed.
install_arrow() {
  [[ -n ${SLIM_ARROW:-} ]] || pip_install sdk/arrow.txt --no-deps ||
    echo "Arrow could not be installed: slim will read no parquet files" >&2
}

# A translation unit that includes ATen takes up to 2 GiB to compile.
build_jobs() {
  local cores memory_jobs
  cores=$(nproc)
  memory_jobs=$(awk '/^MemAvailable:/ { print int($2 / 2097152) }' /proc/meminfo)
  ((memory_jobs >= 1)) || memory_jobs=1
  echo $((cores < memory_jobs ? cores : memory_jobs))
}

# build TARGET...: the preset `dev`, in build/.
build() {
  say "Building into build/"
  mkdir -p build
  cmake --preset dev -DSLIM_UNITY=ON -DSLIM_TORCH="$SLIM_TORCH" >build/configure.log 2>&1 || {
    cat build/configure.log >&2
    die "configuring failed"
  }
  cmake --build --preset dev -j "${CMAKE_BUILD_PARALLEL_LEVEL:-$(build_jobs)}" --target "$@"
}

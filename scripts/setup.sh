#!/usr/bin/env bash
# Installs what the build and the tests need and the machine lacks: cmake,
# libclang, a C++ compiler, make and pip. As root on Debian through apt,
# otherwise cmake, libclang and ninja through pip.
# Sourced by demo.sh and test.sh, so that the variables it sets reach cargo.

# Whether bindgen can load libclang and read a header with it: asks bindgen
# itself, which looks in many places and for many names. What it says goes to
# target/tools/libclang-probe.log.
have_libclang() {
  local root log
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  log="$root/target/tools/libclang-probe.log"
  mkdir -p "$root/target/tools"
  (cd "$root" && cargo build --release --quiet -p libclang-probe) >"$log" 2>&1
}

# LIBCLANG_PATH is the only place where bindgen looks when it is set. Where it
# leads nowhere, looking without it is better than failing.
find_libclang() {
  have_libclang && return 0
  [ -n "${LIBCLANG_PATH:-}" ] || return 1
  echo "setup: LIBCLANG_PATH=$LIBCLANG_PATH holds no libclang that bindgen can use; going on without it" >&2
  unset LIBCLANG_PATH
  have_libclang
}

# After an installation: bindgen has to find what was installed.
require_libclang() {
  have_libclang && return 0
  echo "error: bindgen cannot use libclang, although it was installed:" >&2
  tail -n 25 "$(dirname "${BASH_SOURCE[0]}")/../target/tools/libclang-probe.log" >&2
  return 1
}

apt_install() {
  echo "setup: apt-get install $*" >&2
  apt-get update -qq >&2 &&
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2
}

# A fresh virtual environment. Debian keeps what `venv` needs in a package of
# its own; where that is missing, PyPI's virtualenv does the same.
make_venv() { # make_venv FOLDER
  if python3 -c 'import ensurepip' 2>/dev/null; then
    python3 -m venv --clear "$1"
    return
  fi
  local virtualenv status=0
  virtualenv=$(mktemp -d)
  python3 -m pip install --quiet --target "$virtualenv" virtualenv >&2 &&
    PYTHONPATH="$virtualenv" python3 -m virtualenv --quiet --clear "$1" >&2 || status=$?
  rm -r "$virtualenv"
  return "$status"
}

setup_build_tools() {
  local root tools missing=() wanted=()
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  tools="$root/target/tools/build"
  command -v cargo >/dev/null || { echo "error: cargo is missing; install Rust first" >&2; return 1; }
  command -v python3 >/dev/null || { echo "error: python3 is missing; install Python first" >&2; return 1; }

  if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    command -v cmake >/dev/null || missing+=(cmake)
    command -v c++ >/dev/null || missing+=(g++)
    command -v make >/dev/null || missing+=(make)
    python3 -m pip --version >/dev/null 2>&1 || missing+=(python3-pip)
    [ ${#missing[@]} -eq 0 ] || apt_install "${missing[@]}" || return 1
    find_libclang && return 0
    apt_install libclang-dev && require_libclang
    return
  fi

  command -v c++ >/dev/null || missing+=(g++)
  python3 -m pip --version >/dev/null 2>&1 || missing+=(python3-pip)
  if [ ${#missing[@]} -gt 0 ]; then
    echo "error: a C++ compiler and pip are needed; on Debian, as root: apt-get install ${missing[*]}" >&2
    return 1
  fi
  # What an earlier run installed counts as there.
  use_pip_tools "$tools"
  command -v cmake >/dev/null || wanted+=(cmake)
  command -v make >/dev/null || command -v ninja >/dev/null || wanted+=(ninja)
  find_libclang || wanted+=(libclang)
  [ ${#wanted[@]} -eq 0 ] && return 0
  echo "setup: pip install ${wanted[*]} (into target/tools/build)" >&2
  [ -x "$tools/bin/pip" ] || make_venv "$tools" || return 1
  "$tools/bin/pip" install --quiet "${wanted[@]}" >&2 || return 1
  use_pip_tools "$tools"
  require_libclang
}

# Lets cargo find what pip installed into FOLDER.
use_pip_tools() { # use_pip_tools FOLDER
  local native
  [ -d "$1/bin" ] || return 0
  case ":$PATH:" in *":$1/bin:"*) ;; *) export PATH="$1/bin:$PATH" ;; esac
  command -v make >/dev/null || export CMAKE_GENERATOR=Ninja
  native=$("$1/bin/python" -c 'import clang, os; print(os.path.join(os.path.dirname(clang.__file__), "native"))' 2>/dev/null) || return 0
  # PyPI's libclang brings no headers of its own: it uses the compiler's.
  export LIBCLANG_PATH="$native"
  export BINDGEN_EXTRA_CLANG_ARGS="-I$(cc -print-file-name=include)"
}

# A llama.cpp that nobody here built, for the tests: PyPI's xllamacpp in a
# virtual environment of its own. What it needs for estimates only (gguf,
# numpy) is left out.
setup_xllamacpp() {
  local root venv version=2026.10.11549
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  venv="$root/target/tools/xllamacpp"
  if [ "$(cat "$venv/version" 2>/dev/null)" != "$version" ]; then
    echo "setup: pip install xllamacpp==$version (into target/tools/xllamacpp)" >&2
    make_venv "$venv"
    "$venv/bin/pip" install --quiet --no-deps "xllamacpp==$version" >&2
    echo "$version" >"$venv/version"
  fi
  export HEADSHARE_XLLAMACPP_PYTHON="$venv/bin/python"
}

# What the chat templates are held to: PyPI's jinja2 in a virtual environment of
# its own, and the templates that llama.cpp keeps for its tests, which the source
# package of PyPI's llama-cpp-python has. Only they are kept of it.
setup_chat_templates() {
  local root venv folder package templates status=0 jinja2=3.1.6 llama_cpp_python=0.3.36
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  venv="$root/target/tools/jinja2"
  templates="$root/target/tools/chat-templates"
  if [ "$(cat "$venv/version" 2>/dev/null)" != "$jinja2" ]; then
    echo "setup: pip install jinja2==$jinja2 (into target/tools/jinja2)" >&2
    make_venv "$venv" || return 1
    "$venv/bin/pip" install --quiet "jinja2==$jinja2" >&2 || return 1
    echo "$jinja2" >"$venv/version"
  fi
  if [ "$(cat "$templates/version" 2>/dev/null)" != "$llama_cpp_python" ]; then
    package=llama-cpp-python
    echo "setup: pip download $package==$llama_cpp_python (77 MB, for target/tools/chat-templates)" >&2
    folder=$(mktemp -d)
    rm -rf "$templates"
    mkdir -p "$templates"
    # pip asks the package for its name, so the tools that build it are fetched,
    # too; nothing is built.
    python3 -m pip download --quiet --no-deps --no-binary "$package" --dest "$folder" \
      "$package==$llama_cpp_python" >&2 &&
      tar -xzf "$folder"/*.tar.gz -C "$templates" --strip-components=5 --wildcards \
        '*/vendor/llama.cpp/models/templates/*.jinja' || status=$?
    rm -r "$folder"
    [ "$status" -eq 0 ] || return "$status"
    echo "$llama_cpp_python" >"$templates/version"
  fi
  export HEADSHARE_JINJA2_PYTHON="$venv/bin/python" HEADSHARE_CHAT_TEMPLATES="$templates"
}

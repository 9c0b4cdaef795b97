#!/usr/bin/env bash
# Installs what the build and the tests need and the machine lacks: cmake,
# libclang, a C++ compiler and pip. As root through apt, otherwise cmake and
# libclang through pip.
# Sourced by demo.sh and test.sh, so that the variables it sets reach cargo.

have_libclang() {
  [ -n "${LIBCLANG_PATH:-}" ] && return 0
  ldconfig -p 2>/dev/null | grep -q 'libclang[-.0-9]*\.so' && return 0
  compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null
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
  local root tools missing=()
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  tools="$root/target/tools/build"
  command -v cargo >/dev/null || { echo "error: cargo is missing; install Rust first" >&2; return 1; }
  command -v cmake >/dev/null || missing+=(cmake)
  command -v c++ >/dev/null || missing+=(g++)
  command -v make >/dev/null || missing+=(make)
  have_libclang || missing+=(libclang-dev)
  python3 -m pip --version >/dev/null 2>&1 || missing+=(python3-pip)
  if [ ${#missing[@]} -eq 0 ]; then return 0; fi

  if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    echo "setup: apt-get install ${missing[*]}" >&2
    apt-get update -qq >&2
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
    return 0
  fi

  case " ${missing[*]} " in
    *" g++ "* | *" make "* | *" python3-pip "*)
      echo "error: a C++ compiler, make and pip are needed: apt-get install g++ make python3-pip" >&2
      return 1 ;;
  esac
  echo "setup: pip install cmake libclang (into target/tools/build)" >&2
  [ -x "$tools/bin/pip" ] || make_venv "$tools"
  "$tools/bin/pip" install --quiet cmake libclang >&2
  export PATH="$tools/bin:$PATH"
  if ! have_libclang; then
    LIBCLANG_PATH=$("$tools/bin/python" -c 'import clang, os; print(os.path.join(os.path.dirname(clang.__file__), "native"))')
    # PyPI's libclang brings no headers of its own: it uses the compiler's.
    BINDGEN_EXTRA_CLANG_ARGS="-I$(gcc -print-file-name=include)"
    export LIBCLANG_PATH BINDGEN_EXTRA_CLANG_ARGS
  fi
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

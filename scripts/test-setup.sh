#!/usr/bin/env bash
# Tries the set-up where nothing of what it should install is there: in fresh
# minimal Debian roots that have Rust, a C++ compiler and Python. In each, the
# set-up must leave a cmake, a compiler and a libclang that bindgen can use.
# Needs root on Debian (for chroot and mmdebstrap); elsewhere it is skipped.
set -euo pipefail
cd "$(dirname "$0")/.."

skip() { echo "test-setup: skipped: $1"; exit 0; }
[ "$(id -u)" -eq 0 ] || skip "it needs root, for chroot"
[ -f /etc/debian_version ] && command -v apt-get >/dev/null || skip "it needs Debian, for mmdebstrap"
git ls-files >/dev/null 2>&1 || skip "it needs git, and a checkout"
unshare --mount true 2>/dev/null || skip "this machine allows no mounts"
if ! command -v mmdebstrap >/dev/null; then
  apt-get update -qq >/dev/null
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends mmdebstrap >/dev/null
fi

started=$SECONDS
work=$PWD/target/tools/roots
suite=bookworm
base=$work/$suite.tar
mkdir -p "$work/archives/partial" "$work/cargo" "$work/target"

# Packages that roots of earlier cases downloaded are not downloaded again.
if [ ! -f "$base" ]; then
  echo "test-setup: making a minimal Debian $suite"
  mmdebstrap --quiet --variant=minbase --include=ca-certificates,g++,python3 \
    "$suite" "$work/part.tar"
  mv "$work/part.tar" "$base"
fi

# try NAME USER PACKAGES SCRIPT: a fresh root with PACKAGES (none: ""), in which
# USER runs the set-up and then SCRIPT.
try() {
  local name=$1 user=$2 packages=$3 script=$4 root=$work/root log=$work/$1.log sysroot
  sysroot=$(rustc --print sysroot)
  rm -rf --one-file-system "$root"
  mkdir -p "$root"
  tar -xf "$base" -C "$root"
  mkdir -p "$root/src" "$root/cargo" "$root/cargo-target" "$root/rust"
  # Files that were deleted and not yet committed are not there.
  git ls-files -z | while IFS= read -r -d '' file; do
    [ ! -e "$file" ] || printf '%s\0' "$file"
  done | xargs -0 -r cp --parents -t "$root/src"
  # The machine's certificates and its ways to the package registries.
  cp /etc/resolv.conf "$root/etc/" 2>/dev/null || true
  cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
  [ ! -f /etc/pip.conf ] || cp /etc/pip.conf "$root/etc/"
  # These roots need not survive a power cut.
  echo force-unsafe-io >"$root/etc/dpkg/dpkg.cfg.d/unsafe-io"
  echo 'user:x:1000:1000::/home/user:/bin/bash' >>"$root/etc/passwd"
  mkdir -p "$root/home/user"
  chown -R 1000:1000 "$root/home/user"
  [ "$user" = root ] || chown -R "$user" "$root/src" "$work/cargo" "$work/target"
  cat >"$root/try.sh" <<SCRIPT
set -euo pipefail
cd /src
export CARGO_HOME=/cargo CARGO_TARGET_DIR=/cargo-target HOME=\$1
unset LIBCLANG_PATH
. scripts/setup.sh
$script
cmake --version | head -n 1
c++ --version | head -n 1
cargo build --release --quiet -p libclang-probe
SCRIPT
  ROOT=$root SYSROOT=$sysroot WORK=$work TRY_USER=$user PACKAGES=$packages \
    unshare --mount bash -euo pipefail -c '
      mount --bind "$SYSROOT" "$ROOT/rust"
      mount --bind "$WORK/cargo" "$ROOT/cargo"
      mount --bind "$WORK/target" "$ROOT/cargo-target"
      mount --bind "$WORK/archives" "$ROOT/var/cache/apt/archives"
      mount -t proc proc "$ROOT/proc"
      mount --rbind /dev "$ROOT/dev"
      path=/rust/bin:/usr/sbin:/usr/bin:/sbin:/bin
      if [ -n "$PACKAGES" ]; then
        chroot "$ROOT" env PATH="$path" DEBIAN_FRONTEND=noninteractive sh -c \
          "apt-get update -qq && apt-get install -y -qq --no-install-recommends $PACKAGES"
      fi
      home=/root
      [ "$TRY_USER" = root ] || home=/home/user
      chroot --userspec="$TRY_USER" "$ROOT" env PATH="$path" bash /try.sh "$home"
    ' >"$log" 2>&1 </dev/null || {
    echo "test-setup: FAILED: $name; the end of $log:" >&2
    tail -n 30 "$log" >&2
    exit 1
  }
  rm -rf --one-file-system "$root"
  echo "test-setup: ok: $name"
}

try "nothing but what README asks for" root "" setup_build_tools
# LLVM's C++ library is not libclang, although its name begins like it. And a
# LIBCLANG_PATH that leads nowhere must not hide what was installed.
try "libclang-cpp is there, libclang is not" root libclang-cpp14 \
  'setup_build_tools; export LIBCLANG_PATH=/nowhere; setup_build_tools; [ -z "${LIBCLANG_PATH:-}" ]'
try "an ordinary user, cmake and libclang from pip" 1000:1000 python3-pip \
  'setup_build_tools; case $(command -v cmake) in /src/target/tools/*) ;; *) exit 1 ;; esac'
echo "test-setup: 3 passed, 0 failed, in $((SECONDS - started)) s"

#!/bin/sh
# All the set-up that `make demo` needs, and with `./setup.sh test` what `make test` needs: Debian packages, the virtual
# environment, the function images. Runs again at no cost: says nothing where there is nothing to do.
set -eu
cd "$(dirname "$0")"

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# --- Debian packages: what they are for is beside them -------------------------------------------------------
#   tor             the real thing: relays, authorities, clients; tor-gencert for private networks
#   bubblewrap      the jail that functions run in
#   libseccomp2     compiles the list of system calls that a function may make
#   nftables        the kernel's rules behind the egress broker
#   iproute2        the virtual address of an exit endpoint; the tests' network namespaces
#   python3-venv    makes the virtual environment and the function image
#   ca-certificates what functions verify TLS with
# And for the image that the tests need besides:
#   chromium-headless-shell  Chromium without a desktop, for functions that render pages
#   fonts-liberation         what it writes letters with,
#   fonts-wqy-microhei       Chinese, Japanese and Korean ones,
#   fonts-freefont-ttf       and those of Arabic, Hebrew, Hindi, Thai and others
packages="tor bubblewrap libseccomp2 nftables iproute2 python3-venv ca-certificates"
images=python
what=.
case "${1:-}" in
    "") ;;
    dev) what='.[dev,bench]' ;;
    test)
        what='.[dev,bench]'
        packages="$packages chromium-headless-shell fonts-liberation fonts-wqy-microhei fonts-freefont-ttf"
        images="$images browser"
        ;;
    *) fail "usage: ./setup.sh [dev|test]" ;;
esac
missing=
for package in $packages; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done
if [ -n "$missing" ]; then
    say "installing Debian packages:$missing"
    if [ "$(id -u)" = 0 ]; then sudo=; elif command -v sudo >/dev/null; then sudo=sudo; else
        fail "cannot install$missing: run 'apt-get install$missing' as root"
    fi
    # Installing must not start a tor of the system's on the user's machine: RUNLEVEL=1 makes invoke-rc.d hold back.
    log=$(mktemp)
    { $sudo env DEBIAN_FRONTEND=noninteractive apt-get update -qq &&
      # shellcheck disable=SC2086
      $sudo env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends $missing
    } >"$log" 2>&1 </dev/null || { tail -n 5 "$log" >&2; rm -f "$log"; fail "apt-get could not install$missing"; }
    rm -f "$log"
fi

# --- the virtual environment ---------------------------------------------------------------------------------
# From the system's interpreter: one under a private home could not be shown to another user id.
python=/usr/bin/python3
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "$python is older than Python 3.11"
made=
stamp=".venv/.installed$(printf %s "$what" | tr -dc a-z)"
want=$(cat setup.cfg pyproject.toml | sha256sum)
if [ "$(cat "$stamp" 2>/dev/null)" != "$want" ] || ! .venv/bin/python -c 'import bento_tor.cli' 2>/dev/null; then
    say "making .venv (a minute on a fresh machine)"
    [ -x .venv/bin/python ] || { rm -rf .venv; "$python" -m venv .venv || fail "$python cannot make .venv"; }
    log=$(mktemp)
    .venv/bin/python -m pip install --quiet --upgrade 'pip>=23' 'setuptools>=65' wheel >"$log" 2>&1 &&
    .venv/bin/python -m pip install --quiet --editable "$what" >>"$log" 2>&1 || {
        tail -n 5 "$log" >&2; rm -f "$log"; fail "pip could not install bento-tor and what it needs into .venv"
    }
    rm -f "$log"
    printf '%s' "$want" >"$stamp"
    made=yes
fi

# --- the images that functions see ---------------------------------------------------------------------------
for image in $images; do
    .venv/bin/bento-tor --quiet image build "$image" || fail "the image $image could not be built"
done
[ -z "$made" ] || say "done: .venv/bin/bento-tor is there"

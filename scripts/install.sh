#!/bin/sh
# Makes .venv next to this folder and fills it from requirements.txt; nothing is written outside .venv.
# Every failure is one sentence on stderr and exit code 1.
set -eu
cd "$(dirname "$0")/.."

venv=.venv/bin/python
stamp=.venv/installed        # what the finished install was made from
unfinished=.venv/unfinished  # the process id of an install that has not finished
log=.venv/install.log        # pip's stderr

die() { echo "make install: $1" >&2; exit 1; }

fingerprint() {
    "$1" -c 'import hashlib, sys
files = b"".join(open(name, "rb").read() for name in ("requirements.txt", "constraints.txt"))
print("python%d.%d" % sys.version_info[:2], hashlib.sha256(files).hexdigest())' 2>/dev/null
}

# The usual case: everything is there. A PYTHON that was asked for must be the one it was made with.
if [ -f "$stamp" ] && [ ! -e "$unfinished" ] && "$venv" -c '' 2>/dev/null &&
    [ "$(fingerprint "${PYTHON:-$venv}")" = "$(cat "$stamp")" ]; then
    exit 0
fi

# --- Which Python ------------------------------------------------------------------------------------

# Sets `python` when $1 will do, and otherwise `problem`, where an earlier candidate's problem stays:
# python3 is the one that the learner knows.
try() {
    found=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || return 1
    case $found in
        3.11 | 3.12 | 3.13) ;;
        *)
            problem=${problem:-"Python 3.11, 3.12 or 3.13 is needed, but $1 is Python $found; name another with make install PYTHON=/path/to/python3."}
            return 1
            ;;
    esac
    # Debian and Ubuntu keep ensurepip, without which venv cannot work, in a package of its own.
    if ! "$1" -c 'import venv, ensurepip' 2>/dev/null; then
        problem=${problem:-"$1 (Python $found) has no venv module; add it (Debian and Ubuntu: apt install python$found-venv) and run make install again."}
        return 1
    fi
    # Below a virtual environment, possibly our own that is about to be replaced, lies the real one.
    python=$("$1" -c 'import sys; print(sys._base_executable)')
}

problem=
if [ -n "${PYTHON:-}" ]; then
    none="PYTHON=$PYTHON does not run; give the path of a Python 3.11, 3.12 or 3.13."
    try "$PYTHON" || die "${problem:-$none}"
else
    none="no python3 was found; install Python 3.11, 3.12 or 3.13, or name one with make install PYTHON=/path/to/python3."
    try python3 || try python3.13 || try python3.12 || try python3.11 || die "${problem:-$none}"
fi

# --- The virtual environment -------------------------------------------------------------------------

# An install that was killed may have left half a package that pip would take for a whole one, so it
# starts afresh, with pip's cache sparing the downloads. One that still runs is left alone.
if [ -e "$unfinished" ]; then
    other=$(cat "$unfinished" 2>/dev/null || true)
    if [ -n "$other" ] && kill -0 "$other" 2>/dev/null; then
        die "another make install (process $other) is at work in this folder; wait until it ends (or delete .venv)."
    fi
    echo "An earlier install was cut short; starting it again."
    rm -rf .venv
fi

if [ "$("$venv" -c 'import pip, sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" != "$found" ]; then
    rm -rf .venv
    # The available kilobytes are the number before the percentage (file system names may hold spaces).
    free=$(df -Pk . | sed -n '2s/.* \([0-9][0-9]*\)  *[0-9]*%.*/\1/p')
    if [ "${free:-4194304}" -lt 4194304 ]; then
        die "too little disk space: 4 GB is needed and $((free / 1024)) MB is free in $PWD."
    fi
    echo "Making .venv with $python (Python $found)"
    mkdir .venv
    echo $$ >"$unfinished"
    "$python" -m venv .venv 2>"$log" ||
        die "$python could not make a virtual environment in $PWD/.venv: $(tail -n 1 "$log")"
fi
echo $$ >"$unfinished"
rm -f "$stamp"

# --- The packages ------------------------------------------------------------------------------------

# -I keeps a PYTHONPATH out, whose packages pip would count as installed. pip's own settings (pip.conf,
# PIP_*) stay in force, except for an install into the home folder, which no virtual environment allows.
# Without a terminal to show progress on, pip keeps quiet.
echo "Installing the packages (2 GB in .venv; some minutes the first time)"
quiet=
[ -t 1 ] || quiet=--quiet
if ! "$venv" -I -m pip install --no-user $quiet -r requirements.txt 2>"$log"; then
    if grep -qi 'no space left\|disk quota' "$log"; then
        die "the disk filled up while pip was installing; free some space and run make install again."
    elif grep -qi 'connection\|timed out\|name resolution\|unreachable\|no route to host\|proxy\|ssl' "$log"; then
        rm -f "$unfinished"  # pip downloads before it installs, so what was there is still whole
        die "pip cannot reach its package index; check the network and run make install again (details: $log)."
    fi
    why=$(grep '^ERROR' "$log" | tail -n 1)
    die "pip failed: ${why:-$(tail -n 1 "$log")} (details: $log)."
fi

# `import qlib` works from any folder, and still does when the checkout moves: Python reads the path
# relative to site-packages, which lies four folders below the checkout.
echo ../../../.. >"$("$venv" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/qlib-checkout.pth"

fingerprint "$venv" >"$stamp"
rm -f "$unfinished"
echo "Installed. make lab opens the lessons."

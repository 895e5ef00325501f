#!/bin/sh
# Makes bench/.venv, which sees the course's packages and this folder's checkout, and adds the peers to it one at a time:
# one that cannot be installed here is a line of the table, with the reason. Failures are in bench/.venv/install.log.
set -eu
cd "$(dirname "$0")"

stamp=.venv/installed  # what the finished environment was made from
wanted=$(cat requirements.txt ../.venv/installed)
[ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ] || exit 0

rm -rf .venv
../.venv/bin/python -m venv .venv
here=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
there=$(../.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
printf '%s\n' "$there" "$(dirname "$PWD")" >"$here/course.pth"

sed '/^#/d; /^-/d; /^$/d' requirements.txt | while read -r peer; do
    echo "Installing $peer"
    .venv/bin/python -I -m pip install --no-user --quiet -c requirements.txt "$peer" 2>>.venv/install.log ||
        echo "$peer could not be installed: $(grep '^ERROR' .venv/install.log | tail -n 1)"
done
printf '%s\n' "$wanted" >"$stamp"

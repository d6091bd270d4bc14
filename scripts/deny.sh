#!/usr/bin/env bash
# Checks the dependencies by deny.toml: licences, sources, duplicates, and known
# vulnerabilities. The database of the last comes from GitHub; where that cannot
# be reached, the output says that they were not checked, and the exit code is
# still 0 unless ADVISORIES=required is set.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly VERSION=0.20.2
readonly TOOLS=$PWD/target/tools
readonly DENY=$TOOLS/bin/cargo-deny
export CARGO_HOME=${CARGO_HOME:-$HOME/.cargo}

if [ "$("$DENY" --version 2>/dev/null || true)" != "cargo-deny $VERSION" ]; then
    # Into the build directory, so that nothing outside the repository changes;
    # not optimised, because compiling it takes longer than all it ever does.
    cargo install --locked --debug --force --version "$VERSION" cargo-deny \
        --root "$TOOLS" --target-dir "$TOOLS/build"
    rm -rf "$TOOLS/build"
fi

"$DENY" --all-features --locked check bans licenses sources

log=$(mktemp)
trap 'rm -f "$log"' EXIT
if timeout 120 "$DENY" fetch db >"$log" 2>&1; then
    "$DENY" --all-features --locked check --disable-fetch advisories
elif [ "${ADVISORIES-}" = required ]; then
    cat "$log" >&2
    echo "deny: the database of advisories cannot be fetched" >&2
    exit 1
else
    echo "deny: ADVISORIES WERE NOT CHECKED: their database cannot be fetched from here" >&2
    tail -n 3 "$log" >&2
fi

#!/usr/bin/env bash
# Prints the path of promtool, which tests the chart's alerts: $PROMTOOL, the
# machine's own, or that of Debian's package prometheus, which is unpacked into
# .cache and not installed, for installing it would start a service.
set -euo pipefail
cd "$(dirname "$0")/.."
if [[ -n ${PROMTOOL:-} ]] || command -v promtool >/dev/null; then
    command -v "${PROMTOOL:-promtool}"
    exit
fi
promtool=$PWD/.cache/promtool/promtool
if [[ ! -x $promtool ]]; then
    command -v apt-get >/dev/null || {
        echo "promtool: please install it; it comes with Prometheus" >&2
        exit 69
    }
    unpacked=$(mktemp -d)
    trap 'rm -rf "$unpacked"' EXIT
    chmod 0755 "$unpacked"
    (
        cd "$unpacked"
        apt-get download -q prometheus >/dev/null 2>&1 || {
            sudo=()
            [[ $(id -u) -eq 0 ]] || sudo=(sudo)
            "${sudo[@]}" apt-get update -q >&2
            apt-get download -q prometheus >&2
        }
        dpkg-deb -x prometheus_*.deb root
    )
    mkdir -p "$(dirname "$promtool")"
    install -m 0755 "$unpacked/root/usr/bin/promtool" "$promtool"
fi
echo "$promtool"

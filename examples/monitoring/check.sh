#!/usr/bin/env bash
# Checks the alert rules and their tests with Prometheus' promtool, and metrics where a file with them is named:
#   examples/monitoring/check.sh [METRICS]
# promtool is taken from PATH, or else unpacked from Debian's package prometheus, without installing it.
set -euo pipefail
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
cache=${CARGO_TARGET_DIR:-$here/../../target}/promtool

promtool=$(command -v promtool || true)
if [[ -z $promtool ]]; then
    promtool=$cache/usr/bin/promtool
    if [[ ! -x $promtool ]]; then
        command -v apt-get >/dev/null || { echo "there is no promtool on PATH and no apt-get to get it with: install Prometheus" >&2 && exit 1; }
        rm -rf "$cache" && mkdir -p "$cache/download"
        (cd "$cache/download" && { apt-get -qq download prometheus || { apt-get -qq update && apt-get -qq download prometheus; }; }) >&2
        dpkg -x "$cache"/download/prometheus_*.deb "$cache"
        rm -rf "$cache/download"
    fi
fi
"$promtool" check rules "$here/alerts.yaml"
(cd "$here" && "$promtool" test rules alerts.test.yaml)
if [[ -n ${1:-} ]]; then
    "$promtool" check metrics <"$1"
fi

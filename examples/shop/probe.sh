#!/usr/bin/env bash
# Tries connections for real. Reads lines "ID NAMESPACES ADDRESS PORT PROTOCOL" and writes "ID open" or "ID closed" for each:
# open is a whole exchange, a request sent and a byte of the answer received. NAMESPACES is a PID (that container's network
# and files, so that names resolve as they do there), the path of a network namespace, or - for the place it is run in.
set -euo pipefail
seconds=${PROBE_SECONDS:-3}

# Runs inside the namespaces, with that root's own bash.
# shellcheck disable=SC2016
exchange='exec 3<>"/dev/tcp/$0/$1" && printf "$2" >&3 && read -r -N 1 -u 3'

probe() {
    local id=$1 where=$2 address=$3 port=$4 request enter=()
    case $5 in
    http) request='GET / HTTP/1.0\r\n\r\n' ;;
    redis) request='PING\r\n' ;;
    postgres) request='\0\0\0\10\4\322\26\57' ;; # asks for TLS; the answer is one letter
    esac
    case $where in
    -) ;;
    /*) enter=(nsenter "--net=$where") ;;
    *) enter=(nsenter -t "$where" -m -n) ;;
    esac
    if "${enter[@]}" timeout "$seconds" bash -c "$exchange" "$address" "$port" "$request" </dev/null >/dev/null 2>&1; then
        echo "$id open"
    else
        echo "$id closed"
    fi
}

while read -r id where address port protocol; do probe "$id" "$where" "$address" "$port" "$protocol" & done
wait

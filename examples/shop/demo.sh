#!/usr/bin/env bash
# A small shop of real servers on a private Docker Engine, without and with Cofferdam. Every cell of every table is a connection that
# was tried from inside the container; the demo fails if one differs from what the policy says.
#
#   examples/shop/demo.sh        (make demo builds first; COFFERDAM names another binary)
set -euo pipefail
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
project=$(realpath "$here/../..")
engine=$project/tests/engine/private-engine
cache=${CARGO_TARGET_DIR:-$project/target}/shop

# ------------------------------------------------------------------------------------------------ outside the engine

outside() {
    [[ $EUID -eq 0 ]] || { echo "the demo starts a Docker Engine of its own and needs root: run it as root" >&2 && exit 1; }
    COFFERDAM=$(realpath -- "${COFFERDAM:-${CARGO_TARGET_DIR:-$project/target}/debug/cofferdam}")
    [[ -x $COFFERDAM ]] || { echo "no program at $COFFERDAM: cargo build makes it" >&2 && exit 1; }
    export COFFERDAM
    "$engine" setup jq
    home=$(mktemp -d /tmp/cofferdam-shop.XXXXXX) # the engine's, which removes it
    trap 'status=$?; clean_up || status=1; exit "$status"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP

    say "Composing the shop's image from Debian's packages and starting a private Docker Engine."
    "$here/root.sh" "$cache"
    ENGINE_OWNER=$$ "$engine" up "$home" >/dev/null
    "$engine" image "$home" shop:demo "$cache/root" >/dev/null
    "$engine" exec "$home" "$here/demo.sh" inside "$home" &
    wait "$!" # unlike a command in the foreground, this ends for a signal
    clean_up
    say "The engine is gone and nothing is left. Done in $SECONDS seconds."
}

clean_up() {
    trap '' INT TERM HUP
    "$engine" down "$home"
}

say() { printf '\n%s\n' "$*"; }

# ------------------------------------------------------------------------------------------------- inside the engine

declare -A port=([web]=80 [api]=8000 [cache]=6379 [db]=5432)
declare -A protocol=([web]=http [api]=http [cache]=redis [db]=postgres)
columns=(web api cache db)
containers=() # in the order of the table's rows
declare -A service pid address
edges=()        # "web>api": what the policy declares
enforced=false  # before that, everything is expected to be open
declare -A seen # each cell of the table before, to mark what changed
checked=0

inside() {
    home=$1
    policies=$home/policies
    control=$home/control.sock
    daemon_socket=$DOCKER_HOST
    make_world
    docker network create shop_default >/dev/null

    say "Starting the shop: nginx, an API in Python, a worker, Redis and PostgreSQL."
    launch web-1 -p 8080:80 shop:demo nginx -c /shop/nginx.conf
    launch api-1 shop:demo python3 /shop/api.py
    launch worker-1 shop:demo python3 /shop/worker.py
    launch cache-1 --user redis shop:demo redis-server --protected-mode no --save '' --appendonly no
    launch db-1 --user postgres shop:demo /shop/start.sh
    await_servers
    order tea
    say "WITHOUT COFFERDAM. Anyone in the shop may open a connection to anyone (open: an answer came; -: none; blank: itself):"
    matrix

    mkdir "$policies"
    cp "$project/policies/shop.yaml" "$policies/"
    say "The policy (policies/shop.yaml) declares:"
    sed -n '/^allow:/,$p' "$policies/shop.yaml"
    "$COFFERDAM" check "$policies" >"$home/check.log" 2>&1 || { cat "$home/check.log" && exit 1; }
    "$COFFERDAM" run --policies "$policies" --docker-socket "${daemon_socket#unix://}" --control-socket "$control" \
        --state-directory "$home/state" >"$home/cofferdam.log" 2>&1 </dev/null &
    daemon=$!
    enforced=true
    edges=("world>web" "web>api" "api>cache" "worker>cache" "api>db" "worker>db")
    await_policy
    say "WITH COFFERDAM, $took after its start. Only what is declared:"
    matrix
    order coffee

    say "The worker shall call the API. One line more in the file:"
    echo '  - { from: worker, to: api, ports: [8000] }' | tee -a "$policies/shop.yaml"
    edges+=("worker>api")
    await_policy
    say "In force $took later (* changed):"
    matrix

    sed -i '$d' "$policies/shop.yaml"
    unset 'edges[-1]'
    say "The line is taken out again."
    await_policy
    say "In force $took later:"
    matrix

    replica
    say "And the shop still works:"
    order cocoa
    say "What was tried of the database and is not declared, as cofferdam flows tells it:"
    local denied
    denied=$("$COFFERDAM" flows --to shop/db --verdict denied --control-socket "$control")
    grep -q 'shop/web (shop-web-1) -> shop/db:5432/tcp .*no edge from shop/web to shop/db' <<<"$denied" ||
        broken "cofferdam flows does not tell that web tried the database: $denied"
    head -n 6 <<<"$denied"
    say "The same by Cofferdam's own proof, in both address families and on undeclared ports, too:"
    local proof
    proof=$("$COFFERDAM" verify --docker-socket "${daemon_socket#unix://}" --control-socket "$control") ||
        broken "cofferdam verify finds a difference: $proof"
    tail -n 1 <<<"$proof"

    say "Taking Cofferdam away."
    kill -TERM "$daemon" && wait "$daemon" || true
    "$COFFERDAM" down --yes --docker-socket "${daemon_socket#unix://}" >"$home/down.log" 2>&1 || { cat "$home/down.log" && exit 1; }
    if nft list tables | grep -q cofferdam; then broken "a table of Cofferdam's is left"; fi
    if docker network ls --format '{{.Name}}' | grep -q '^cofferdam-'; then broken "a network of Cofferdam's is left"; fi
    say "Its tables and networks are gone. $checked connections were tried; every one did what the tables say."
}

# Something outside this host: a network namespace behind a router port of ours.
make_world() {
    ip netns add world
    ip link add uplink type veth peer name eth0 netns world
    ip address add 198.51.100.1/24 dev uplink
    ip link set uplink up
    ip -n world address add 198.51.100.2/24 dev eth0
    ip -n world link set lo up
    ip -n world link set eth0 up
    ip -n world route add default via 198.51.100.1
}

# launch CONTAINER [docker run flags...] IMAGE COMMAND...: as compose would, with its labels and alias.
launch() {
    local name=$1 role=${1%-*}
    shift
    local files=()
    [[ ! -d $here/$role ]] || files=(-v "$here/$role:/shop:ro")
    docker run -d --name "shop-$name" --network shop_default --network-alias "$role" "${files[@]}" \
        --label com.docker.compose.project=shop --label "com.docker.compose.service=$role" \
        --label "com.docker.compose.container-number=${name##*-}" "$@" >/dev/null
    containers+=("$name")
    service[$name]=$role
    read -r "pid[$name]" "address[$name]" < <(docker inspect "shop-$name" \
        -f '{{.State.Pid}} {{(index .NetworkSettings.Networks "shop_default").IPAddress}}')
}

# Until each server answers to itself.
await_servers() {
    local name role answers
    for _ in {1..60}; do
        answers=$(for name in "${containers[@]}"; do
            role=${service[$name]}
            [[ -z ${port[$role]:-} ]] || echo "$name ${pid[$name]} 127.0.0.1 ${port[$role]} ${protocol[$role]}"
        done | PROBE_SECONDS=1 "$here/probe.sh")
        [[ $answers == *closed* ]] || return 0
        sleep 0.2
    done
    for name in "${containers[@]}"; do docker logs --tail 5 "shop-$name"; done
    broken "the shop's servers do not start: $answers"
}

# Until the kernel holds what the policy files say now. Sets $took.
await_policy() {
    local wanted begin=${EPOCHREALTIME/./} status=
    wanted=$("$COFFERDAM" check "$policies" --json | jq -r .revision)
    while ((${EPOCHREALTIME/./} - begin < 30000000)); do
        status=$("$COFFERDAM" status --control-socket "$control" --json 2>/dev/null) || true
        if [[ $(jq --arg wanted "$wanted" \
            '.state == "enforcing" and .settled and .policy.revision == $wanted' <<<"$status" 2>/dev/null) == true ]]; then
            took="$(((${EPOCHREALTIME/./} - begin) / 1000)) ms"
            return
        fi
        kill -0 "$daemon" 2>/dev/null || break
        sleep 0.05
    done
    broken "the policy is not in force: ${status:-no status}"
}

broken() {
    if [[ -s $home/cofferdam.log ]]; then
        printf '\nThe last lines of the log of cofferdam run:\n'
        tail -n 20 "$home/cofferdam.log"
    fi
    printf '\nTHE DEMO FAILS: %s\n' "$*"
    exit 1
}

# An HTTP request from outside through the published port; prints the answer's body.
outside_request() {
    # shellcheck disable=SC2016
    nsenter --net=/run/netns/world timeout 5 bash -c 'exec 3<>/dev/tcp/198.51.100.1/8080 &&
        printf "%s %s HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s" "$0" "$1" "${#2}" "$2" >&3 && cat <&3' \
        "$1" "$2" "${3:-}" | sed '1,/^\r$/d'
}

# One order through the whole shop: world, web, api, cache, worker, db, and back.
order() {
    local answer
    outside_request POST /orders "$1" >/dev/null || true
    for _ in {1..25}; do
        answer=$(outside_request GET /orders || true)
        if [[ $answer == *"\"$1\""* ]]; then
            echo "An order of $1 from outside went through web, api, cache, worker and db: $answer"
            return
        fi
        sleep 0.2
    done
    broken "an order of $1 got lost; the last answer was: $answer"
}

expected() { # from row $1 to column $2
    local from=${service[$1]:-$1}
    if ! $enforced; then
        # Docker itself lets the world reach published ports only.
        if [[ $1 == world && $2 != web ]]; then echo closed; else echo open; fi
    elif [[ " ${edges[*]} " == *" $from>$2 "* ]]; then
        echo open
    else
        echo closed
    fi
}

# Tries every row against every column: by service name, and each replica by its address. Prints, then compares with what is expected.
matrix() {
    local row column name results cell mark wrong=() rows=(world host "${containers[@]}")
    results=$(for row in "${rows[@]}"; do
        for column in "${columns[@]}"; do
            case $row in
            world) place=/run/netns/world ;;
            host) place=- ;;
            *) place=${pid[$row]} ;;
            esac
            if [[ $row == world && $column == web ]]; then
                echo "$row>$column $place 198.51.100.1 8080 http"
                continue
            fi
            if [[ $place == [0-9]* && ${service[$row]} != "$column" ]]; then
                echo "$row>$column $place $column ${port[$column]} ${protocol[$column]}"
            fi
            for name in "${containers[@]}"; do
                [[ ${service[$name]} == "$column" && $name != "$row" ]] || continue
                echo "$row>$column $place ${address[$name]} ${port[$column]} ${protocol[$column]}"
            done
        done
    done | "$here/probe.sh" | sort)
    checked=$((checked + $(wc -l <<<"$results")))

    printf '\n  %-12s' 'from \ to'
    for column in "${columns[@]}"; do printf '%-14s' "$column:${port[$column]}"; done
    printf '\n'
    for row in "${rows[@]}"; do
        printf '  %-12s' "$row"
        for column in "${columns[@]}"; do
            cell=$(awk -v id="$row>$column" '$1 == id { print $2 }' <<<"$results" | sort -u | paste -sd/)
            mark=
            if [[ -n ${seen[$row>$column]:-} && ${seen[$row>$column]} != "$cell" ]]; then mark=' *'; fi
            seen[$row>$column]=$cell
            case $cell in
            '') printf '%-14s' ' ' ;; # a single replica: itself
            closed) printf '%-14s' "-$mark" ;;
            *) printf '%-14s' "$cell$mark" ;;
            esac
            [[ -z $cell || $cell == "$(expected "$row" "$column")" ]] ||
                wrong+=("$row to $column is $cell and should be $(expected "$row" "$column").")
        done
        printf '\n'
    done
    if ((${#wrong[@]})); then broken "${wrong[*]}"; fi
}

# Another container of a service: held to its rights from its first instruction on.
replica() {
    say "A second API container starts. Before it serves, its first instructions try the database and the web server:"
    # shellcheck disable=SC2016
    local first='
        try() { if timeout 3 bash -c ": </dev/tcp/$1/$2" 2>/dev/null; then echo "$1:$2 open"; else echo "$1:$2 closed"; fi; }
        try db 5432; try web 80; exec python3 /shop/api.py'
    launch api-2 shop:demo bash -c "$first"
    await_servers
    local tried
    tried=$(docker logs shop-api-2 2>/dev/null | paste -sd' ')
    echo "  $tried"
    checked=$((checked + 2))
    [[ $tried == "db:5432 open web:80 closed" ]] || broken "the new container should reach db and not web"
    say "And in the table, where each cell now means both of the API's containers:"
    matrix
}

case ${1:-} in
inside) inside "$2" ;;
*) outside ;;
esac

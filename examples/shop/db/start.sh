#!/bin/bash
# PostgreSQL with one table and no passwords: in this shop only the network decides who gets to the database.
set -euo pipefail
PATH=$(echo /usr/lib/postgresql/*/bin):$PATH
data=/var/lib/postgresql/data
initdb -D "$data" -U postgres -A trust --locale=C -E UTF8 --no-sync >/dev/null
echo 'host all all all trust' >>"$data/pg_hba.conf"
echo 'CREATE TABLE orders (id serial PRIMARY KEY, item text NOT NULL);' | postgres --single -D "$data" postgres >/dev/null
exec postgres -D "$data" -c listen_addresses='*' -c unix_socket_directories= -c fsync=off -c jit=off

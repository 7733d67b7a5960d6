#!/usr/bin/env bash
# Composes the root file system of the shop's image from Debian's packages: root.sh DIR. Nothing is installed on the host:
# the packages and what they need are downloaded and unpacked. A finished DIR is left as it is.
set -euo pipefail
dir=$1
[[ ! -e $dir/.complete ]] || exit 0
rm -rf "$dir"
mkdir -p "$dir"/packages

# What the servers need on an empty system, without what only installation and rare features need.
wanted=(nginx-light redis-server postgresql python3 python3-psycopg2 bash coreutils libc-bin)
unneeded='^(libllvm|libz3|perl|libperl|lib.*-perl$|locales|libc-l10n|debconf|adduser|dpkg|tar$|tzdata|ucf|passwd|usrmerge)'
apt=(apt-get -qq -o APT::Sandbox::User=root -o APT::Install-Recommends=0 -o Dpkg::Use-Pty=0)
resolve() { "${apt[@]}" -s -o Dir::State::status=/dev/null install "${wanted[@]}" | awk '$1 == "Inst" { print $2 }'; }
list=$(resolve) || { "${apt[@]}" update && list=$(resolve); }
mapfile -t packages < <(grep -vE "$unneeded" <<<"$list")
fetch() { (cd "$dir/packages" && "${apt[@]}" download "${packages[@]}" >/dev/null); }
fetch || { "${apt[@]}" update && fetch; } # lists can be older than the archive

root=$dir/root
mkdir -p "$root"/{etc,proc,sys,dev,run,tmp,root,var/lib/postgresql,usr/{bin,sbin,lib,lib64}}
ln -s usr/bin usr/sbin usr/lib usr/lib64 "$root"
for package in "$dir"/packages/*.deb; do dpkg-deb --fsys-tarfile "$package" | tar -x --keep-directory-symlink -C "$root"; done
rm -rf "$dir/packages" "$root"/usr/share/{doc,man,locale,info,lintian} "$root"/usr/lib/{*/perl*,postgresql/*/lib/bitcode}
ln -sf bash "$root/usr/bin/sh"
chmod 1777 "$root/tmp"
cat >"$root/etc/passwd" <<'END'
root:x:0:0:root:/root:/bin/bash
www-data:x:33:33:www-data:/var/www:/bin/false
postgres:x:70:70:postgres:/var/lib/postgresql:/bin/bash
redis:x:71:71:redis:/tmp:/bin/false
END
printf 'root:x:0:\nwww-data:x:33:\npostgres:x:70:\nredis:x:71:\n' >"$root/etc/group"
chown 70:70 "$root/var/lib/postgresql"
: >"$dir/.complete"

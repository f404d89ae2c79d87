#!/bin/sh
# bare_machine.sh none|egl|osmesa AS_ROOT AS_USER: run two shell commands in this commit on a machine like a new user's: a
# minimal Debian with Python, git and make, and of OpenGL nothing at all, EGL only, or OSMesa only. AS_ROOT installs; AS_USER
# runs without privileges, over a home and a virtual environment that it cannot write to. Needs root on a Debian and 12 GB of
# memory (the machine is a root folder in memory, in namespaces of its own, gone at the end), and takes nothing of this
# machine but pip's configuration.
# Example: scripts/bare_machine.sh none 'make setup setup-tests' 'make test demo gate'
set -eu
cd "$(dirname "$0")/.."
state=$1 as_root=$2 as_user=$3
packages=python3,python3-venv,make,git,ca-certificates
case $state in
    none) ;;
    egl) packages=$packages,libegl1,libegl-mesa0 ;;
    osmesa) packages=$packages,libosmesa6 ;;
    *) echo "bare_machine: got $state, expected none, egl or osmesa" >&2 && exit 64 ;;
esac
[ "$$" -eq 1 ] || { # begin again as the first process of new namespaces, which end with it
    command -v mmdebstrap >/dev/null || { apt-get update -qq && apt-get install -y -qq mmdebstrap >/dev/null; }
    exec unshare --mount --pid --fork --kill-child --mount-proc sh scripts/bare_machine.sh "$@"
}

root=/mnt
mount -t tmpfs -o size=12g,mode=755 bare "$root"
mmdebstrap --quiet --variant=minbase --include="$packages" bookworm "$root"
gl=$(chroot "$root" dpkg --list | awk '/^ii +lib(egl1|egl-mesa0|osmesa6|gl1|glx0)[: ]/ { print $2, $3 }' | tr '\n' ' ')
echo "bare_machine: $(. "$root/etc/os-release" && echo "$PRETTY_NAME"), of OpenGL: ${gl:-nothing}"

git clone --quiet . "$root/srv/vla-bench"
chroot "$root" useradd --create-home someone
chroot "$root" chown -R someone /srv/vla-bench
chroot "$root" git config --system --add safe.directory /srv/vla-bench
chown root "$root/home/someone" && chmod 555 "$root/home/someone"
for file in /etc/resolv.conf /etc/pip.conf /etc/xdg/pip /etc/ssl/certs/ca-certificates.crt; do
    [ ! -e "$file" ] || { mkdir -p "$root$(dirname "$file")" && cp -rL "$file" "$root$(dirname "$file")/"; }
done
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
for folder in ${PIP_FIND_LINKS:-}; do
    [ ! -d "$folder" ] || { mkdir -p "$root$folder" && mount --bind "$folder" "$root$folder"; }
done

inside() { # inside USER COMMAND
    user=$1 command=$2
    set -- HOME="$(chroot "$root" getent passwd "$user" | cut -d: -f6)" USER="$user" LANG=C.UTF-8 \
        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    for name in $(env | sed -n 's/^\(CI\|PIP_[A-Z_]*\|OPENBLAS_[A-Z0-9_]*\)=.*/\1/p'); do
        set -- "$@" "$name=$(printenv "$name")"
    done
    chroot "$root" setpriv --reuid "$user" --regid "$user" --clear-groups env -i "$@" sh -euc "cd /srv/vla-bench; $command"
}
inside root "$as_root"
inside someone "$as_user"

#!/bin/bash
# try-debian.sh [--root FOLDER] [--keep] [12|13] [COMMAND...]: install the peers and run demo, lint and test, or COMMAND,
# on a clean clone of HEAD in a root of that Debian (13). Needs root, or sudo, and debootstrap.
#   --root FOLDER  where the root is made, and found again (build/debian-13)
#   --keep         keep the clone of the last run with its build, brought to HEAD, in place of a new one
# The root comes from the mirror that this machine's apt uses, and pip is configured in it as it is on this machine.
# All mounts lie in a mount namespace of their own, and all processes in a process namespace: both end with the script,
# however it ends. Logs are in build/debian-13-logs.
set -eu
cd "$(dirname "$0")/.."
if [ "$(id -u)" != 0 ]; then
    exec sudo -E "$0" "$@"
fi
if [ "${VIRTIO_TRY_DEBIAN:-}" != inside ]; then
    VIRTIO_TRY_DEBIAN=inside exec unshare --mount --propagation private --pid --fork --kill-child "$0" "$@"
fi

root='' keep=
while [ $# -gt 0 ]; do
    case $1 in
    --root) root=$2 && shift 2 ;;
    --keep) keep=yes && shift ;;
    *) break ;;
    esac
done
release=13
case ${1:-} in
[0-9]*) release=$1 && shift ;;
esac
case $release in
12) codename=bookworm ;;
13) codename=trixie ;;
*) echo "try-debian: Debian $release is none of: 12 13" >&2 && exit 2 ;;
esac
logs=$PWD/build/debian-$release-logs
root=$(realpath -m "${root:-build/debian-$release}")
mkdir -p "$logs"

mirror() { # label: the site from which apt gets it
    apt-get indextargets --format '$(LABEL) $(SITE)' | awk -v label="$1" '$1 == label { print $2; exit }'
}

make_root() {
    local main security
    main=$(mirror Debian) security=$(mirror Debian-Security)
    if [ -z "$main" ]; then
        echo "try-debian: apt has no mirror of Debian here (apt-get update?)" >&2
        exit 1
    fi
    if ! command -v debootstrap > /dev/null; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends debootstrap
    fi
    if [ ! -e "$root/etc/.complete" ]; then
        debootstrap --variant=minbase --include=ca-certificates "$codename" "$root" "$main"
        touch "$root/etc/.complete"
    fi
    {
        echo "deb $main $codename main"
        echo "deb $main $codename-updates main"
        [ -z "$security" ] || echo "deb $security $codename-security main"
    } > "$root/etc/apt/sources.list"
    printf '#!/bin/sh\nexit 101\n' > "$root/usr/sbin/policy-rc.d" # no package starts a service
    chmod +x "$root/usr/sbin/policy-rc.d"
}

mount_all() {
    # a mount of its own: ip netns makes all mounts below / slaves, which fails where / is none
    mount --bind "$root" "$root"
    mount -t proc proc "$root/proc"
    mount --rbind /sys "$root/sys"
    mount --rbind /dev "$root/dev"
    mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
    mount -t tmpfs -o mode=755 tmpfs "$root/run"
}

lend() { # path of this machine: make it readable in the root, below /machine
    local path=$1
    ! mountpoint -q "$root/machine$path" || return 0
    if [ -d "$path" ]; then
        mkdir -p "$root/machine$path"
    else
        mkdir -p "$root/machine$(dirname "$path")"
        : > "$root/machine$path"
    fi
    mount --bind "$path" "$root/machine$path"
    mount -o remount,bind,ro "$root/machine$path"
}

configure() { # names, proxies, and pip: each setting of each file and variable, with the files that it names
    local name value word words
    cp /etc/resolv.conf /etc/hosts "$root/etc/"
    apt-config dump | grep -E '^Acquire::https?::' > "$root/etc/apt/apt.conf.d/90machine" || true
    mkdir -p "$root/machine"
    mount -t tmpfs tmpfs "$root/machine"
    echo '[global]' > "$root/etc/pip.conf"
    [ -x .venv/bin/pip ] || tools/venv.sh python3 .venv
    # in reverse: variables (":env:") come last, and so win
    .venv/bin/pip config list | sort -r | sed -nE "s/^([a-z:]*)\.([a-z-]+)='(.*)'\$/\2 \3/p" > "$root/machine/pip"
    while read -r name value; do
        words=
        for word in ${value//\\n/ }; do
            case $word in
            file:///*) # an index: what its pages link to lies beside it
                word=${word#file://}
                lend "$(dirname "$word")" && word=file:///machine$word
                ;;
            /*)
                if [ -e "$word" ]; then
                    lend "$word" && word=/machine$word
                fi
                ;;
            esac
            words="$words $word"
        done
        sed -i "/^$name =/d" "$root/etc/pip.conf"
        echo "$name =$words" >> "$root/etc/pip.conf"
    done < "$root/machine/pip"
}

inside() { # command: in the root's clone, with a clean environment
    # the root becomes / (in a chroot a process may make no user namespace); ccache is used if it is installed there
    unshare --mount --propagation private sh -ec '
        root=$1 && shift
        mkdir -p "$root/old"
        cd "$root"
        pivot_root . old
        exec chroot . sh -ec "umount -l /old; cd /root/virtio; exec \"\$@\"" sh "$@"
    ' sh "$root" env -i HOME=/root PATH=/usr/lib/ccache:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        TERM="${TERM:-dumb}" LANG=C.UTF-8 CI=true DEBIAN_FRONTEND=noninteractive "$@"
}

failed=
step() { # name, command
    local name=$1 start=$SECONDS result=ok
    shift
    inside "$@" > "$logs/$name.log" 2>&1 || { result=FAILED && failed=yes; }
    printf '%-8s  %-6s  %5d s  %s\n' "$name" "$result" $((SECONDS - start)) "$(tail -n 1 "$logs/$name.log" | cut -c 1-100)"
    [ $result = ok ] || tail -n 25 "$logs/$name.log"
}

make_root > "$logs/root.log" 2>&1 || { tail -n 25 "$logs/root.log" && exit 1; }
mount_all
configure
[ -n "$keep" ] || rm -rf "$root/root/virtio"
if [ -d "$root/root/virtio" ]; then
    git -C "$root/root/virtio" fetch -q "file://$PWD" HEAD
    git -C "$root/root/virtio" reset -q --hard FETCH_HEAD
else
    git clone -q "file://$PWD" "$root/root/virtio"
    git -C "$root/root/virtio" checkout -q "$(git rev-parse HEAD)"
fi
echo "try-debian: Debian $(cat "$root/etc/debian_version"), $(git log -1 --format='%h %s')"
if [ $# -gt 0 ]; then
    inside "$@"
    exit
fi
step packages sh -c 'apt-get update -qq && apt-get install -y -qq --no-install-recommends make'
step peers make peers
step demo make demo
step lint make lint
step test make test
[ -z "$failed" ]

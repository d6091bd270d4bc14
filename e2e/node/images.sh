#!/usr/bin/env bash
# Makes the images of the cases, with tar and sha256sum:
#
#   DIR/volumes/<name>   OCI layouts, which pods name as oci:…/volumes/<name>:1
#   DIR/registry         what registries serve: private/data:1 and public/slow:1
#   DIR/slow-bytes       how large the latter is
#   DIR/container.tar    what the containers run from: busybox, and nothing else
#
# usage: e2e/node/images.sh DIR TOOLS
#   BIG_FILES    files of each of the images that take a while to stage
set -euo pipefail
out=${1:?usage: images.sh DIR TOOLS}
tools=${2:?usage: images.sh DIR TOOLS}
busybox=$tools/bin/busybox
: "${BIG_FILES:=4000}"

case $(uname -m) in
x86_64) architecture=amd64 ;;
aarch64) architecture=arm64 ;;
*) architecture=$(uname -m) ;;
esac

# pack DIRECTORY TAR: owned by root and with one time, whoever runs this.
pack() {
    tar --create --file "$2" --directory "$1" --sort=name --owner=0 --group=0 \
        --numeric-owner --mtime=@1700000000 --format=pax \
        --pax-option=delete=atime,delete=ctime .
}

# blob LAYOUT FILE TYPE: moves it in, and prints its descriptor without the end.
blob() {
    local sum size
    sum=$(sha256sum <"$2" | cut -d ' ' -f 1)
    size=$(stat --format=%s "$2")
    mv "$2" "$1/blobs/sha256/$sum"
    printf '{"mediaType":"application/vnd.oci.image.%s","digest":"sha256:%s","size":%s' \
        "$3" "$sum" "$size"
}

# image LAYOUT CONFIG NAMES LAYER…: CONFIG is what is run, NAMES the manifest's
# annotations, a LAYER a directory, the lowest first.
image() {
    local layout=$1 config=$2 names=$3 layer layers='' ids='' manifest
    shift 3
    mkdir -p "$layout/blobs/sha256"
    for layer in "$@"; do
        pack "$layer" "$scratch/layer.tar"
        ids+="${ids:+,}\"sha256:$(sha256sum <"$scratch/layer.tar" | cut -d ' ' -f 1)\""
        gzip -n -1 <"$scratch/layer.tar" >"$scratch/layer.gz"
        layers+="${layers:+,}$(blob "$layout" "$scratch/layer.gz" layer.v1.tar+gzip)}"
    done
    printf '{"os":"linux","architecture":"%s","config":%s,"rootfs":{"type":"layers","diff_ids":[%s]}}' \
        "$architecture" "$config" "$ids" >"$scratch/config"
    manifest=application/vnd.oci.image.manifest.v1+json
    printf '{"schemaVersion":2,"mediaType":"%s","config":%s},"layers":[%s]}' \
        "$manifest" "$(blob "$layout" "$scratch/config" config.v1+json)" "$layers" \
        >"$scratch/manifest"
    printf '{"schemaVersion":2,"manifests":[%s,"annotations":%s}]}' \
        "$(blob "$layout" "$scratch/manifest" manifest.v1+json)" "$names" \
        >"$layout/index.json"
    printf '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"
}

volume_image() {
    local name=$1
    shift
    image "$out/volumes/$name" '{}' '{"org.opencontainers.image.ref.name":"1"}' "$@"
}

umask 022
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
rm -rf "$out"
mkdir -p "$out"

# Three layers: the second deletes a file and replaces a directory's content.
base=$scratch/base patch=$scratch/patch app=$scratch/app
mkdir -p "$base"/{etc,srv/old,usr/share} "$patch"/{etc,srv/old} "$app"/{etc,srv/app}
echo base >"$base/etc/version"
echo Welcome. >"$base/etc/motd"
echo kept >"$base/etc/kept"
echo gone >"$base/srv/old/gone"
head -c 2000000 /dev/zero | tr '\0' x >"$base/usr/share/data"
echo patch >"$patch/etc/version"
: >"$patch/etc/.wh.motd"
: >"$patch/srv/old/.wh..wh..opq"
echo new >"$patch/srv/old/new"
echo app >"$app/etc/version"
echo 'Hello from the image.' >"$app/srv/app/greeting"
ln -s greeting "$app/srv/app/current"
volume_image app "$base" "$patch" "$app"

other=$scratch/other
mkdir -p "$other/etc"
echo other >"$other/etc/version"
volume_image other "$other"

# For a stack of images: what it deletes is its own only.
over_base=$scratch/over-base over=$scratch/over
mkdir -p "$over_base"/{etc,opt,srv/old} "$over"/{etc,opt,srv/old}
echo deleted >"$over_base/etc/kept"
echo deleted >"$over_base/opt/gone"
echo deleted >"$over_base/srv/old/theirs"
echo over >"$over/etc/version"
: >"$over/etc/.wh.kept"
: >"$over/opt/.wh.gone"
echo over >"$over/opt/over"
: >"$over/srv/old/.wh..wh..opq"
echo mine >"$over/srv/old/mine"
volume_image over "$over_base" "$over"

# Each with a layer of its own, so that every one has to be staged.
for number in 1 2 3; do
    big=$scratch/big-$number
    mkdir -p "$big/etc" "$big/many"
    echo "big $number" >"$big/etc/version"
    seq -f "$number %g" "$BIG_FILES" |
        split --lines=1 --suffix-length=5 --numeric-suffixes - "$big/many/"
    head -c 20000000 /dev/urandom >"$big/random"
    volume_image "big-$number" "$base" "$big"
    rm -rf "$big"
done

# What pods are to pull: into a registry by skopeo, as anybody would.
private=$scratch/private
mkdir -p "$private/etc"
echo private >"$private/etc/version"
image "$scratch/pushed/private/data" '{}' '{"org.opencontainers.image.ref.name":"1"}' "$private"
slow=()
for number in 1 2 3; do
    slow+=("$scratch/slow-$number")
    mkdir -p "$scratch/slow-$number"
    head -c $((number * 3000000)) /dev/urandom >"$scratch/slow-$number/random-$number"
done
mkdir "$scratch/slow-3/etc"
echo slow >"$scratch/slow-3/etc/version"
image "$scratch/pushed/public/slow" '{}' '{"org.opencontainers.image.ref.name":"1"}' "${slow[@]}"
find "$scratch/pushed/public/slow/blobs" -type f -printf '%s\n' |
    awk '{ sum += $1 } END { print sum }' >"$out/slow-bytes"
here=$(cd "$(dirname "$0")" && pwd)
"$here/push.sh" "$tools/bin/docker-registry" "$out/registry" "$scratch/pushed"

container=$scratch/container
mkdir -p "$container/bin" "$container"/{dev,etc,proc,sys,tmp}
install -m 0755 "$busybox" "$container/bin/busybox"
while read -r applet; do
    [[ $applet = busybox ]] || ln -s busybox "$container/bin/$applet"
done < <("$busybox" --list)
# Without a command it is what holds a pod's namespaces.
image "$scratch/container-layout" '{"Entrypoint":["/bin/sleep","2147483647"],"Env":["PATH=/bin"]}' \
    '{"io.containerd.image.name":"localhost/container:1","org.opencontainers.image.ref.name":"1"}' \
    "$container"
tar --create --file "$out/container.tar" --directory "$scratch/container-layout" .
# How many files they have.
echo "$BIG_FILES" >"$out/big-files"

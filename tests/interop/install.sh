#!/bin/sh
# Installs what `make interop` needs (Debian, Ubuntu), if it is absent, and leaves no service of it running.
# The OHIF viewer comes from npm, as it is published, and is unpacked into build/ohif.
set -eu

ohif_version=3.13.2
ohif_sha256=b189d3963bfc58e9394a9db8c7be75d07beb029ec211dbb126d47b62969dd3f1
build=$(cd "$(dirname "$0")/../.." && pwd)/build

has_ohif() {
    grep -q "\"version\": \"$ohif_version\"" "$build/ohif/package.json" 2> /dev/null
}

fetch_ohif() (
    mkdir -p "$build"
    folder=$(mktemp -d "$build/ohif.XXXXXX")
    trap 'rm -rf "$folder"' EXIT
    cd "$folder"
    npm pack --loglevel=error "@ohif/app@$ohif_version" > /dev/null
    echo "$ohif_sha256  ohif-app-$ohif_version.tgz" | sha256sum --check --quiet
    tar -xzf "ohif-app-$ohif_version.tgz"
    rm -rf "$build/ohif"
    mv package "$build/ohif"
)

install_packages() (
    if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
        echo "absent:$packages; make interop needs them; as root on Debian or Ubuntu: apt-get install -y$packages" >&2
        exit 1
    fi

    # invoke-rc.d and deb-systemd-invoke ask this file whether a package may start its service (Debian Policy 9.3.3).
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' > "$policy"
        chmod 755 "$policy"
        trap 'rm -f "$policy"' EXIT
    fi

    apt-get update -q
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $packages

    # Nor at the next start of this machine. An Orthanc that was here before is left as it is.
    case "$packages" in
    *" orthanc "* | *" orthanc")
        update-rc.d orthanc disable > /dev/null 2>&1 || true
        systemctl disable orthanc > /dev/null 2>&1 || true
        ;;
    esac
    if pgrep -x Orthanc > /dev/null 2>&1; then
        echo "an Orthanc is running that make interop did not start; it is left alone" >&2
    fi
)

mkdir -p "$build"
exec 9> "$build/install.lock"
flock 9 # another suite may be installing

packages=""
test -x /usr/sbin/Orthanc || packages="$packages orthanc"
test -e /usr/share/orthanc/plugins/libOrthancDicomWeb.so || packages="$packages orthanc-dicomweb"
test -x /usr/bin/storescu || packages="$packages dcmtk"
test -x /usr/bin/DicomSRValidator || packages="$packages pixelmed-apps"
test -x /usr/bin/promtool || packages="$packages prometheus"
test -x /usr/bin/amtool || packages="$packages prometheus-alertmanager"
test -x /usr/bin/chromium || packages="$packages chromium"
command -v gcc > /dev/null || packages="$packages gcc libc6-dev"
has_ohif || command -v npm > /dev/null || packages="$packages npm"
if [ -n "$packages" ]; then install_packages; fi
if ! has_ohif; then fetch_ohif; fi

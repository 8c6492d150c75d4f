#!/bin/sh
# Installs what `make interop` needs (Debian, Ubuntu), if it is absent, and leaves no service of it running.
set -eu

packages=""
test -x /usr/sbin/Orthanc || packages="$packages orthanc"
test -e /usr/share/orthanc/plugins/libOrthancDicomWeb.so || packages="$packages orthanc-dicomweb"
test -x /usr/bin/storescu || packages="$packages dcmtk"
test -x /usr/bin/chromium || packages="$packages chromium"
command -v gcc > /dev/null || packages="$packages gcc libc6-dev"
test -n "$packages" || exit 0

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

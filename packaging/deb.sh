#!/bin/sh
# Builds dist/vragent_VERSION_ARCH.deb from bin/vragent, for this machine: packaging/deb.sh VERSION
# The same commit gives the same bytes: all times are SOURCE_DATE_EPOCH.
set -eu
cd "$(dirname "$0")/.."

export VERSION="$1"
DEB_ARCH=$(go env GOARCH)
export DEB_ARCH

rm -rf dist/tree
mkdir -p dist/tree
for shell in bash zsh fish; do
	bin/vragent completion "$shell" >"dist/tree/completions.$shell"
done
sed "s/@VERSION@/$VERSION/; s/@DATE@/$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%d)/" packaging/vragent.8 |
	gzip -9n >dist/tree/vragent.8.gz
{
	echo "vragent ($VERSION) stable; urgency=medium"
	echo
	echo "  * Built from commit $(git rev-parse HEAD 2>/dev/null || echo unknown)."
	echo
	echo " -- The vragent authors <vragent@vragent.invalid>  $(LC_ALL=C date -u -R -d "@$SOURCE_DATE_EPOCH")"
} | gzip -9n >dist/tree/changelog.gz

go tool -modfile=packaging/tools/go.mod nfpm package --config packaging/nfpm.yaml --packager deb --target "dist/vragent_${VERSION}_$DEB_ARCH.deb" >dist/nfpm.log || {
	cat dist/nfpm.log >&2
	exit 1
}
rm -rf dist/tree dist/nfpm.log
echo "dist/vragent_${VERSION}_$DEB_ARCH.deb"

#!/bin/sh
# Builds one package in dist/ and prints its name: packaging/package.sh deb|rpm amd64|arm64 [NAME]
# NAME is vragent, if not named, or vragent-cloudstack, which is a deb only.
#
# The program comes from dist/ARCH/, what is generated with it (completions) from bin/vragent, which
# runs here. VERSION, COMMIT and SOURCE_DATE_EPOCH are in the environment (see the Makefile). The same
# sources give the same bytes: all times are SOURCE_DATE_EPOCH, all owners and modes are in nfpm.yaml.
set -eu
cd "$(dirname "$0")/.."

format=$1
PACKAGE_ARCH=$2
name=${3:-vragent}
export VERSION PACKAGE_ARCH

tree=dist/tree
rm -rf $tree
mkdir -p $tree
trap 'rm -rf $tree' EXIT
case $name in
vragent)
	recipe=packaging
	for shell in bash zsh fish; do
		bin/vragent completion "$shell" >"$tree/completions.$shell"
	done
	;;
*) recipe=packaging/cloudstack ;;
esac
sed "s/@VERSION@/$VERSION/; s/@DATE@/$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%d)/" "$recipe/$name.8" |
	gzip -9n >"$tree/$name.8.gz"
{
	echo "$name ($VERSION) stable; urgency=medium"
	echo
	echo "  * Built from commit $COMMIT."
	echo
	echo " -- The vragent authors <vragent@vragent.invalid>  $(LC_ALL=C date -u -R -d "@$SOURCE_DATE_EPOCH")"
} | gzip -9n >$tree/changelog.gz

case "$format $PACKAGE_ARCH" in
'rpm amd64') package=dist/vragent-$VERSION-1.x86_64.rpm ;;
'rpm arm64') package=dist/vragent-$VERSION-1.aarch64.rpm ;;
*) package=dist/${name}_${VERSION}_$PACKAGE_ARCH.deb ;;
esac
go tool -modfile=packaging/tools/go.mod nfpm package --config $recipe/nfpm.yaml --packager "$format" --target "$package" >$tree/log || {
	cat $tree/log >&2
	exit 1
}
echo "$package"

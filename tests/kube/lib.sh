# Shared by the scripts beside it; the caller has `set -euo pipefail`.

harness=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
world=${CARDINAL_KUBE_WORLD:-cardinal-kube}
cache=${CARDINAL_KUBE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/cardinal-kube}
state=${CARDINAL_KUBE_STATE:-/run/$world}
kubeconfig=$state/kubeconfig
namespace=/run/netns/$world
components=(etcd kube-apiserver kube-controller-manager kube-scheduler node)

fail() {
	echo "$(basename "$0"): $*" >&2
	exit 1
}

need_root() {
	local program
	[ "$(id -u)" = 0 ] || fail "network namespaces need root"
	for program in ip nsenter openssl; do
		command -v "$program" >/dev/null || fail "$program is needed (packages iproute2, util-linux, openssl)"
	done
}

# in_world COMMAND...: the current shell's process becomes the command, in the world's network namespace.
in_world() {
	exec nsenter --net="$namespace" -- "$@"
}

kubectl() {
	nsenter --net="$namespace" -- "$state/bin/controlplane" kubectl --kubeconfig "$kubeconfig" "$@"
}

# A pid alone may have been reused; with the time of its start it is one process.
process_start() {
	local stat
	stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
	stat=${stat##*) }
	set -- $stat
	[ "$1" != Z ] && echo "${20}"
}

# alive NAME: gives the component's pid when it runs.
alive() {
	local pid begun
	{ read -r pid begun <"$state/$1.pid"; } 2>/dev/null || return 1
	[ "$(process_start "$pid")" = "$begun" ] && echo "$pid"
}

# launch NAME COMMAND...: runs a component in the world's namespace, with its output in a log.
launch() {
	local name=$1 pid
	shift
	alive "$name" >/dev/null && return
	# Relayed connections need many descriptors; a container may not be allowed to raise the limit.
	(ulimit -n 1048576 2>/dev/null || true; in_world setsid "$@") </dev/null >>"$state/$name.log" 2>&1 &
	pid=$!
	echo "$pid $(process_start "$pid")" >"$state/$name.pid"
}

# stop NAME SECONDS: ends the component if it is still the process that was started.
stop() {
	local pid tries=$(($2 * 20))
	if pid=$(alive "$1"); then
		kill -TERM "$pid"
		while [ $((tries--)) -gt 0 ] && alive "$1" >/dev/null; do sleep 0.05; done
		if pid=$(alive "$1"); then kill -KILL "$pid"; fi
	fi
	rm -f "$state/$1.pid"
}

# check_components fails when one that was started has ended.
check_components() {
	local component
	for component in "${components[@]}"; do
		[ ! -e "$state/$component.pid" ] || alive "$component" >/dev/null ||
			fail "$component ended, see $state/$component.log"
	done
}

# wait_for SECONDS WHAT COMMAND...
wait_for() {
	local deadline=$((SECONDS + $1)) what=$2
	shift 2
	until "$@" >/dev/null 2>&1; do
		check_components
		[ "$SECONDS" -lt "$deadline" ] || fail "$what: not within the time, see the logs in $state"
		sleep 0.1
	done
}

# built MODULE: the cache directory of a module's binaries, named after the module's sources and go.sum.
built() {
	local hash
	hash=$(cd "$harness/$1" && find . -type f ! -name '*.md' -print0 | sort -z | xargs -0 sha256sum | sha256sum)
	echo "$cache/$(basename "$1")-${hash:0:16}"
}

# build MODULE COMMAND...: runs the command in the module's directory, with $out to be filled, unless that was done. Needs no
# root.
build() {
	local module=$1 target out
	shift
	target=$(built "$module")
	if [ ! -d "$target" ]; then
		command -v go >/dev/null || fail "Go is needed to build $module: https://go.dev/dl"
		echo "building $module" >&2
		mkdir -p "$cache"
		out=$(mktemp -d "$target.XXXXXX")
		(cd "$harness/$module" && out=$out CGO_ENABLED=0 "$@") || {
			rm -rf "$out"
			fail "failed to build $module"
		}
		chmod 755 "$out"
		mv -T "$out" "$target" 2>/dev/null || rm -rf "$out" # Somebody else was faster.
		find "$cache" -maxdepth 1 -name "$(basename "$module")-*" -mtime +14 -exec rm -r {} +
	fi
	touch "$target" # Its age is the time since its last use.
}

# link MODULE: the module's binaries become those of the world.
link() {
	local file
	mkdir -p "$state/bin"
	for file in "$(built "$1")"/*; do ln -sfn "$file" "$state/bin/$(basename "$file")"; done
}

build_controlplane() {
	local version
	version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
	local package=k8s.io/component-base/version
	go build -ldflags "-s -w -X $package.gitVersion=$version -X $package.gitMajor=1 -X $package.gitMinor=$(cut -d. -f2 <<<"$version")" \
		-o "$out/controlplane" .
}

build_node() {
	go build -ldflags "-s -w" -o "$out/node" .
}

# The CRDs come from the module directory of the version that the suite is pinned to.
build_suite() {
	go build -ldflags "-s -w" -o "$out/echo-basic" sigs.k8s.io/gateway-api/conformance/echo-basic
	go test -c -ldflags "-s -w" -o "$out/suite" .
	local crds
	crds=$(go list -m -f '{{.Dir}}' sigs.k8s.io/gateway-api)/config/crd
	for channel in experimental standard; do
		mkdir -p "$out/crds/$channel"
		install -m 644 "$crds/$channel"/gateway.networking.*.yaml "$out/crds/$channel/"
	done
}

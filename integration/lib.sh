# What the commands in this directory share. Sourced by bash; sets no option and changes no directory.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
top=$(dirname "$here")

die() { printf '\n%s: error: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# The caller's settings must not lead any client to a server of theirs.
for name in $(compgen -e | grep -E '^(PG|WALHOLD_)' | grep -vE '^(PG_DEBIAN|WALHOLD_(TEST|PG))'); do unset "$name"; done
export LC_ALL=C.UTF-8

# have_tool PROGRAM PACKAGE: true if the program is here, or was installed just now (root on Debian).
have_tool() {
  command -v "$1" >/dev/null && return
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
  apt_install "$2" && command -v "$1" >/dev/null
}

apt_install() {
  local try
  for try in once updated; do
    [ "$try" = once ] || apt-get -qq update >/dev/null 2>&1 || true
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install "$1" >/dev/null 2>&1 && return
  done
  return 1
}

# Debian's server reads the time zones of the machine.
need_time_zones() {
  [ -e /usr/share/zoneinfo/UTC ] && return
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt_install tzdata && [ -e /usr/share/zoneinfo/UTC ] ||
    die "no time zones in /usr/share/zoneinfo: install the package tzdata"
}

# The path of a program after `cargo build`, wherever the target directory is.
cargo_program() { # PROFILE NAME
  local target
  target=$(cd "$top" && cargo metadata --format-version 1 --no-deps --offline 2>/dev/null |
    sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
  echo "${target:-$top/target}/$1/$2"
}

# Makes a private folder with a path short enough for a socket in it. It is removed at exit, after
# what this shell started (`own PID`) and the servers in it (`own_server DATADIR BINDIR`) have ended.
#
# Sets `as`, the words before a command that stands for the user's machine: servers, their tools,
# walhold. A server never runs as root, so for root that is another user. Each word execs the next,
# so that a job's $! is the program itself. The home is the folder, for what clients read in it.
owned_pids=() owned_servers=() scratch=''
make_scratch() { # PREFIX
  scratch=$(mktemp -d "/tmp/$1.XXXXXX")
  chmod 755 "$scratch"
  as=(env "HOME=$scratch")
  if [ "$(id -u)" = 0 ]; then
    chown nobody: "$scratch"
    as+=(setpriv --reuid=nobody "--regid=$(id -gn nobody)" --clear-groups --)
  fi
}
own() { owned_pids+=("$1"); }
own_server() { owned_servers+=("$1=$2"); }
stop_server() { # DATADIR BINDIR MODE
  [ ! -e "$1/postmaster.pid" ] || "${as[@]}" "$2/pg_ctl" -D "$1" -m "$3" -w stop >/dev/null 2>&1
}
clean_up() {
  local pid server
  set +e
  trap "" INT TERM
  for pid in ${owned_pids[@]+"${owned_pids[@]}"}; do kill -9 "$pid" 2>/dev/null; wait "$pid" 2>/dev/null; done
  for server in ${owned_servers[@]+"${owned_servers[@]}"}; do stop_server "${server%%=*}" "${server#*=}" immediate; done
  [ -z "$scratch" ] || rm -rf "$scratch"
}
clean_up_at_exit() {
  trap clean_up EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
}

# until_true SECONDS WHAT COMMAND...: waits for a command to succeed, and dies naming what did not come.
until_true() {
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null; do
    [ "$SECONDS" -lt "$end" ] || die "waited too long for: $what"
    sleep 0.1
  done
}

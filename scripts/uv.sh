# Sourced with $venv set: uv looks where pip looks. It does not read pip's configuration, so it is told what that says.
told_pip() { # told_pip ENVIRONMENT_VALUE NAME: what pip is told, by a variable or in its files
    [ -n "$1" ] && echo "$1" || "$venv/bin/python" -m pip config get "$2" 2>/dev/null || true
}
export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$(told_pip "${PIP_INDEX_URL:-}" global.index-url)}"
export UV_FIND_LINKS="${UV_FIND_LINKS:-$(told_pip "${PIP_FIND_LINKS:-}" global.find-links)}"
export UV_SYSTEM_CERTS="${UV_SYSTEM_CERTS:-true}"
[ -n "$UV_DEFAULT_INDEX" ] || unset UV_DEFAULT_INDEX
[ -n "$UV_FIND_LINKS" ] || unset UV_FIND_LINKS
[ -w "${HOME:-/nonexistent}" ] || export UV_NO_CACHE=1

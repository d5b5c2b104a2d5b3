#!/bin/sh
# Runs a command with the secrets that are in files: for every variable NAME_FILE below whose file
# is there, NAME is set to what is in it. One value serves the Prefect server and its clients.
set -eu

secret() {
    eval "file=\${$1_FILE:-}"
    if [ -z "$file" ]; then
        return 0
    fi
    if [ ! -r "$file" ]; then
        echo "$1_FILE: $file is not there, or not readable for user $(id -u)" >&2
        exit 1
    fi
    value=$(cat "$file")
    if [ -z "$value" ]; then
        echo "$1_FILE: $file is empty" >&2
        exit 1
    fi
    export "$1=$value"
    unset value
}

secret PREFECT_AUTH
secret PREFECT_SERVER_DATABASE_PASSWORD
secret HF_TOKEN
secret WANDB_API_KEY

if [ -n "${PREFECT_AUTH:-}" ]; then
    case "$PREFECT_AUTH" in
        ?*:?*) ;;
        *) echo "PREFECT_AUTH_FILE: write it as user:password" >&2; exit 1 ;;
    esac
    export PREFECT_API_AUTH_STRING="$PREFECT_AUTH" PREFECT_SERVER_API_AUTH_STRING="$PREFECT_AUTH"
    unset PREFECT_AUTH
fi

exec "$@"

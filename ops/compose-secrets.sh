#!/bin/sh
# Makes the passwords that compose.yaml mounts, in the folder secrets/ beside it; says what it made, and never a password.
# Run again it changes nothing; delete a file to have it made anew (then `docker compose up -d --force-recreate`).
# Needs openssl.
set -eu
umask 077
folder=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)/secrets
mkdir -p "$folder"
# The folder is closed to others; the files are readable, since they are mounted as they are into containers whose
# users have other numbers.
chmod 700 "$folder"
cd "$folder"

keep() { # keep NAME: write standard input there
    cat >"$1.new"
    chmod 444 "$1.new"
    mv "$1.new" "$1"
    echo "made $folder/$1"
}

# RabbitMQ's form (rabbit_password_hashing_sha256): a salt of four bytes, and the hash of it with the password.
hash() {
    salt=$(openssl rand -hex 2)
    { printf %s "$salt" && printf %s "$salt$1" | openssl dgst -sha256 -binary; } | openssl base64 -A
}

for name in rabbitmq_pass consumer_pass grafana_pass; do
    if [ ! -s "$name" ]; then
        openssl rand -hex 24 | tr -d '\n' | keep "$name"
        case $name in rabbitmq_pass | consumer_pass) rm -f rabbitmq_users.json ;; esac # it has the hash of the old one
    fi
done

# Least permissions (security.md): trackwatch may declare its exchange and publish to it; the consumer may declare what it
# reads, and read it.
if [ ! -s rabbitmq_users.json ]; then
    keep rabbitmq_users.json <<JSON
{
  "users": [
    {"name": "trackwatch", "tags": [], "hashing_algorithm": "rabbit_password_hashing_sha256",
     "password_hash": "$(hash "$(cat rabbitmq_pass)")"},
    {"name": "consumer", "tags": [], "hashing_algorithm": "rabbit_password_hashing_sha256",
     "password_hash": "$(hash "$(cat consumer_pass)")"}
  ],
  "permissions": [
    {"user": "trackwatch", "vhost": "/", "configure": "^file_events$", "write": "^file_events$", "read": "^$"},
    {"user": "consumer", "vhost": "/", "configure": "^(file_events|library|library\\\\.dead)$",
     "write": "^library$", "read": "^(file_events|library)$"}
  ]
}
JSON
fi

#!/bin/sh
# Remakes the certificates beside this script: a certificate authority that signs for nothing but
# these tests, a member's certificate for loopback, and a client's. They last 100 years, so that
# no test run needs openssl. The keys are public, as this repository is: never use them elsewhere.
set -eu
cd "$(dirname "$0")"

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 36500 \
    -subj "/CN=Kontrol test CA" -addext keyUsage=critical,keyCertSign,cRLSign \
    -keyout ca.key -out ca.pem  # Python 3.13 and later want its usage stated (RFC 5280)

sign() { # name, subject, extensions
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
        -subj "$2" -keyout "$1.key" -out "$1.csr"
    printf '%s\n' "$3" >"$1.ext"
    openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -days 36500 \
        -extfile "$1.ext" -out "$1.pem"
    rm "$1.csr" "$1.ext"
}

# etcd's members are clients of each other, and each of its own gateway: both usages.
sign member "/CN=member" "subjectAltName=IP:127.0.0.1,IP:::1,DNS:localhost
extendedKeyUsage=serverAuth,clientAuth"
sign client "/CN=client" "extendedKeyUsage=clientAuth"
rm ca.key ca.srl
